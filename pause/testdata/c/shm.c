// Shared memory of every kind, deterministic: a child and its parent take
// turns, each step is a line of the file given.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno)); exit(9); } } while (0)
#define LEN (1 << 20)
static uint64_t mixh(uint64_t h, uint64_t x) { h ^= x; h *= 0x9E3779B97F4A7C15ull; return h ^ (h >> 29); }

int main(int argc, char **argv) {
	CHECK(argc == 3);
	int steps = atoi(argv[2]);
	int out = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0644);
	CHECK(out >= 0);
	uint64_t *anon = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(anon != MAP_FAILED);
	int mfd = memfd_create("thing", 0);
	CHECK(mfd >= 0 && ftruncate(mfd, LEN) == 0);
	uint64_t *mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, mfd, 0);
	CHECK(mem != MAP_FAILED);
	char name[300];
	snprintf(name, sizeof name, "%s.gone", argv[1]);
	int del = open(name, O_CREAT | O_RDWR, 0600);
	CHECK(del >= 0 && unlink(name) == 0);
	snprintf(name, sizeof name, "/dev/shm/pause-test-%d", getpid());
	int sfd = open(name, O_CREAT | O_RDWR, 0600);
	CHECK(sfd >= 0 && ftruncate(sfd, LEN) == 0);
	uint64_t *shm = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, sfd, 0);
	CHECK(shm != MAP_FAILED);
	close(sfd);
	CHECK(unlink(name) == 0);
	int to[2], from[2];
	CHECK(pipe(to) == 0 && pipe(from) == 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		close(to[1]);
		close(from[0]);
		uint32_t s;
		while (read(to[0], &s, 4) == 4) {
			for (int i = 0; i < 64; i++) {
				anon[(s * 97 + i * 13) % (LEN / 8)] += mem[(s * 31 + i) % (LEN / 8)] + s;
				shm[(s * 11 + i * 7) % (LEN / 8)] = anon[(s * 97 + i * 13) % (LEN / 8)] ^ i;
			}
			CHECK(write(from[1], &s, 4) == 4);
		}
		_exit(7);
	}
	close(to[0]);
	close(from[1]);
	printf("ready\n");
	fflush(stdout);
	uint64_t h = 1;
	for (uint32_t s = 0; s < (uint32_t)steps; s++) {
		mem[(s * 17) % (LEN / 8)] = h;
		uint32_t r = 0;
		CHECK(write(to[1], &s, 4) == 4 && read(from[0], &r, 4) == 4 && r == s);
		for (int i = 0; i < 64; i++) h = mixh(h, anon[(s * 97 + i * 13) % (LEN / 8)] + shm[(s * 11 + i * 7) % (LEN / 8)]);
		CHECK(pwrite(del, &h, 8, (s % 5000) * 4000L) == 8);
		uint64_t back = 0;
		CHECK(pread(del, &back, 8, ((s * 7) % 5000) * 4000L) >= 0);
		h = mixh(h, back);
		if (s % 100 == 99) { CHECK(ftruncate(del, (s % 7) * 100000) == 0); }
		CHECK(pwrite(mfd, &s, 4, (s * 512) % LEN) == 4);
		char line[80];
		int n = snprintf(line, sizeof line, "step %u %016llx\n", s, (unsigned long long)h);
		CHECK(write(out, line, n) == n);
	}
	close(to[1]);
	int st;
	CHECK(waitpid(child, &st, 0) == child && WEXITSTATUS(st) == 7);
	return 0;
}
