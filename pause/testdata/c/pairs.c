// Socketpairs of every type with unread messages in them, a timerfd, a
// signalfd and an edge-triggered epoll set, deterministic.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno)); exit(9); } } while (0)
static uint64_t mixh(uint64_t h, uint64_t x) { h ^= x; h *= 0x9E3779B97F4A7C15ull; return h ^ (h >> 29); }

int main(int argc, char **argv) {
	CHECK(argc == 3);
	int steps = atoi(argv[2]);
	int out = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0644);
	CHECK(out >= 0);
	int types[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}, sv[3][2];
	for (int i = 0; i < 3; i++) CHECK(socketpair(AF_UNIX, types[i], 0, sv[i]) == 0);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	int sfd = signalfd(-1, &set, SFD_CLOEXEC), tfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	int ep = epoll_create1(EPOLL_CLOEXEC);
	CHECK(sfd >= 0 && tfd >= 0 && ep >= 0);
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u32 = 5};
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, sv[0][1], &ev) == 0);
	printf("ready\n");
	fflush(stdout);
	uint64_t h = 1;
	for (int s = 0; s < steps; s++) {
		for (int i = 0; i < 3; i++) {
			char b[64];
			int n = snprintf(b, sizeof b, "message %d of %d", s, i);
			CHECK(write(sv[i][0], b, n) == n);
			CHECK(write(sv[i][1], b, n / 2) == n / 2);
			if (s % 9 == 8) {
				for (int k = 0; k < 9; k++) {
					char r[4096];
					ssize_t m = recv(sv[i][1], r, sizeof r, MSG_DONTWAIT);
					if (m <= 0) break;
					for (ssize_t q = 0; q < m; q++) h = mixh(h, (uint64_t)r[q]);
				}
				for (int k = 0; k < 9; k++) {
					char r[4096];
					ssize_t m = recv(sv[i][0], r, sizeof r, MSG_DONTWAIT);
					if (m <= 0) break;
					h = mixh(h, (uint64_t)m);
				}
			}
		}
		if (s % 9 == 4) {
			CHECK(epoll_wait(ep, &ev, 1, 1000) == 1 && ev.data.u32 == 5);
		}
		if (s % 50 == 10) {
			struct itimerspec it = {.it_value = {0, 2000000}};
			uint64_t ticks;
			CHECK(timerfd_settime(tfd, 0, &it, NULL) == 0);
			CHECK(read(tfd, &ticks, 8) == 8);
			h = mixh(h, ticks);
		}
		if (s % 20 == 3) CHECK(raise(SIGUSR2) == 0);
		if (s % 20 == 13) {
			struct signalfd_siginfo si;
			CHECK(read(sfd, &si, sizeof si) == sizeof si);
			h = mixh(h, si.ssi_signo);
		}
		if (s % 200 == 150) { close(sv[2][0]); close(sv[2][1]); CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv[2]) == 0); }
		char line[80];
		int n = snprintf(line, sizeof line, "step %d %016llx\n", s, (unsigned long long)h);
		CHECK(write(out, line, n) == n);
	}
	return 0;
}
