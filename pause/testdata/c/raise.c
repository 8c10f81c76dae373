// Raises a signal again and again and counts how often it is handled.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t hits, end;
static void on_usr(int s) { (void)s; hits++; }
static void on_term(int s) { (void)s; end = 1; }

int main(void) {
	struct sigaction sa;
	memset(&sa, 0, sizeof sa);
	sa.sa_handler = on_usr;
	sigaction(SIGUSR1, &sa, NULL);
	sa.sa_handler = on_term;
	sigaction(SIGTERM, &sa, NULL);
	printf("ready\n");
	fflush(stdout);
	for (int n = 1; !end; n++) {
		raise(SIGUSR1);
		if (hits != n) { fprintf(stderr, "%d signals, %d handled\n", n, hits); return 3; }
		for (volatile int i = 0; i < 200; i++) ;
	}
	return 0;
}
