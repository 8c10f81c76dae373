// Touches N megabytes, and then changes M megabytes of them again and again
// until it is told to stop by SIGTERM.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t end;
static void on_term(int s) { (void)s; end = 1; }

int main(int argc, char **argv) {
	size_t all = (size_t)atol(argv[1]) << 20, hot = (size_t)atol(argv[2]) << 20;
	char *p = malloc(all);
	memset(p, 1, all);
	signal(SIGTERM, on_term);
	printf("ready\n");
	fflush(stdout);
	for (int k = 1; !end; k++) {
		for (size_t i = 0; i < hot && !end; i += 4096) p[i] += (char)k;
		if (hot == 0) usleep(1000);
	}
	return argc == 3 ? 0 : 1;
}
