// Touches N megabytes. On each SIGUSR1 it adds to every word of M of them, and
// prints how many nanoseconds that took.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
	if (argc != 3) return 1;
	size_t all = (size_t)atol(argv[1]) << 20, part = (size_t)(atof(argv[2]) * (1 << 20));
	uint64_t *p = malloc(all);
	memset(p, 1, all);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	printf("ready\n");
	fflush(stdout);
	for (int sig; sigwait(&set, &sig) == 0;) {
		long long begin = now();
		for (size_t i = 0; i < part / sizeof *p; i++) p[i] += i;
		printf("%lld\n", now() - begin);
		fflush(stdout);
	}
	return 1;
}
