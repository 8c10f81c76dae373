// Counts in several threads; at SIGTERM it stops and prints how far each got.
// A thread checks its own registers, signal mask and thread-local storage.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N = 4 };
static volatile sig_atomic_t end;
static volatile long count[N];
static __thread long tls;

static void on_term(int s) { (void)s; end = 1; }

static void *work(void *arg) {
	long k = (long)arg;
	double x = 1.0, y = 0.5 + k;
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1 + (k & 1));
	pthread_sigmask(SIG_BLOCK, &set, &old);
	tls = k * 1000;
	while (!end) {
		for (int i = 0; i < 1000; i++) { x = x * 1.0000001 + y; x -= y; }
		tls++;
		count[k]++;
		if (tls != k * 1000 + count[k]) { printf("tls broken in %ld\n", k); exit(2); }
		if (k == 3) usleep(100);
	}
	sigset_t now;
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	if (!sigismember(&now, SIGUSR1 + (k & 1)) || sigismember(&now, SIGINT)) { printf("mask broken in %ld\n", k); exit(3); }
	if (!(x > 0.9)) { printf("x broken\n"); exit(4); }
	return NULL;
}

int main(void) {
	pthread_t t[N];
	struct sigaction sa;
	memset(&sa, 0, sizeof sa);
	sa.sa_handler = on_term;
	sigaction(SIGTERM, &sa, NULL);
	for (long i = 0; i < N; i++) pthread_create(&t[i], NULL, work, (void *)i);
	for (int i = 0; i < N; i++) while (count[i] == 0) usleep(1000);
	printf("ready\n");
	fflush(stdout);
	for (int i = 0; i < N; i++) pthread_join(t[i], NULL);
	for (int i = 0; i < N; i++) if (count[i] == 0) { printf("thread %d did nothing\n", i); return 5; }
	printf("fine\n");
	return 0;
}
