// A bit of everything that a rank may use, deterministic: N steps, each of
// which appends a line to the file given, and a hash over all of it at the end.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno)); exit(9); } } while (0)
enum { WORKERS = 2, BIG = 4 << 20 };
static pthread_barrier_t bar;
static int steps;
static double sums[WORKERS];
static __thread uint64_t tls = 7;
static volatile sig_atomic_t hits;
static volatile int stepno;
static int pfd[2], efd, ep, wake;

static uint64_t mixh(uint64_t h, uint64_t x) { h ^= x; h *= 0x9E3779B97F4A7C15ull; return h ^ (h >> 29); }
static void h1(int s) { (void)s; hits += 1; }
static void h2(int s) { (void)s; hits += 2; }

static void *worker(void *p) {
	long id = (long)p;
	double x = 1.0 + id;
	char *mem = malloc(BIG);
	memset(mem, (int)id, BIG);
	for (int s = 0; s < steps; s++) {
		for (int i = 0; i < 20000; i++) { x = x * 1.0000003 + 0.1; if (x > 100) x -= 99; tls = mixh(tls, i); }
		for (int i = 0; i < BIG; i += 4096) mem[i] += (char)(s + id);
		sums[id] = x + (double)(tls & 1023) + mem[(s * 4096) % BIG];
		pthread_barrier_wait(&bar);
		pthread_barrier_wait(&bar);
	}
	free(mem);
	return NULL;
}
static void *sleeper(void *p) {
	struct epoll_event ev;
	for (;;) {
		int n = epoll_wait(ep, &ev, 1, -1);
		CHECK(n == 1);
		uint64_t v;
		if (ev.data.u64 == 1) { CHECK(read(efd, &v, 8) == 8); return p; }
	}
}
static void *napper(void *p) {
	while (!*(volatile int *)p) { struct timespec t = {0, 3000000}; CHECK(nanosleep(&t, NULL) == 0); }
	return NULL;
}
static void *brief(void *p) { return (void *)((long)p * 3 + 1); }

int main(int argc, char **argv) {
	CHECK(argc == 3);
	steps = atoi(argv[2]);
	int out = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0644);
	CHECK(out >= 0);
	CHECK(pipe(pfd) == 0);
	efd = eventfd(0, 0);
	wake = eventfd(0, 0);
	ep = epoll_create1(0);
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = 1};
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, efd, &ev) == 0);
	ev.data.u64 = 2;
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, wake, &ev) == 0);
	CHECK(pthread_barrier_init(&bar, NULL, WORKERS + 1) == 0);
	stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536};
	CHECK(sigaltstack(&ss, NULL) == 0);
	struct sigaction sa;
	memset(&sa, 0, sizeof sa);
	sa.sa_handler = h1;
	sa.sa_flags = SA_ONSTACK;
	CHECK(sigaction(SIGUSR1, &sa, NULL) == 0);
	pthread_t w[WORKERS], sl, np, br;
	volatile int stop = 0;
	for (long i = 0; i < WORKERS; i++) CHECK(pthread_create(&w[i], NULL, worker, (void *)i) == 0);
	CHECK(pthread_create(&sl, NULL, sleeper, NULL) == 0);
	CHECK(pthread_create(&np, NULL, napper, (void *)&stop) == 0);
	printf("ready\n");
	fflush(stdout);
	uint64_t h = 1;
	char *maps[8] = {0};
	uint64_t *heap = NULL;
	size_t heapn = 0;
	for (int s = 0; s < steps; s++) {
		pthread_barrier_wait(&bar);
		for (int i = 0; i < WORKERS; i++) h = mixh(h, (uint64_t)(sums[i] * 4096));
		pthread_barrier_wait(&bar);
		if (s == steps / 2) { sa.sa_handler = h2; CHECK(sigaction(SIGUSR1, &sa, NULL) == 0); }
		CHECK(raise(SIGUSR1) == 0);
		h = mixh(h, hits);
		int k = s % 8;
		size_t len = (size_t)(k + 1) * 40960;
		if (maps[k]) { h = mixh(h, (uint64_t)maps[k][4096]); CHECK(munmap(maps[k], len) == 0); maps[k] = NULL; }
		else {
			maps[k] = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			CHECK(maps[k] != MAP_FAILED);
			memset(maps[k], s, len);
			if (k & 1) CHECK(mprotect(maps[k], len, PROT_READ) == 0);
		}
		heapn = (heapn * 5 + 1000 + s) % 30000 + 1;
		heap = realloc(heap, heapn * 8);
		CHECK(heap);
		heap[heapn - 1] = s;
		h = mixh(h, heap[heapn - 1]);
		char b[32];
		int n = snprintf(b, sizeof b, "p%d ", s);
		CHECK(write(pfd[1], b, n) == n);
		if (s % 5 == 4) { char rb[256]; ssize_t r = read(pfd[0], rb, sizeof rb); CHECK(r > 0); for (ssize_t i = 0; i < r; i++) h = mixh(h, (uint64_t)rb[i]); }
		uint64_t one = 1;
		(void)one;
		if (s % 3 == 0) { void *res; CHECK(pthread_create(&br, NULL, brief, (void *)(long)s) == 0); CHECK(pthread_join(br, &res) == 0); h = mixh(h, (uint64_t)res); }
		if (s % 7 == 3) { int fd = open(argv[1], O_RDONLY); CHECK(fd >= 0); char c; CHECK(pread(fd, &c, 1, 0) == 1); h = mixh(h, (uint64_t)c); if (s % 2) { CHECK(dup2(fd, 50) == 50); } close(fd); }
		if (s % 7 == 6 && fcntl(50, F_GETFD) >= 0) close(50);
		char line[80];
		n = snprintf(line, sizeof line, "step %d %016llx\n", s, (unsigned long long)h);
		CHECK(write(out, line, n) == n);
		stepno = s;
	}
	uint64_t one = 1;
	CHECK(write(efd, &one, 8) == 8);
	stop = 1;
	CHECK(pthread_join(sl, NULL) == 0);
	CHECK(pthread_join(np, NULL) == 0);
	for (int i = 0; i < WORKERS; i++) CHECK(pthread_join(w[i], NULL) == 0);
	char line[80];
	int n = snprintf(line, sizeof line, "final %016llx\n", (unsigned long long)h);
	CHECK(write(out, line, n) == n);
	return 0;
}
