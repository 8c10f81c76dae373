// Looks all the time for children that it never made, of any kind, for
// SIGCHLD, and for descriptors that it never opened, while another thread
// changes memory. Says "fine" at SIGTERM when it saw none.
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MEGABYTES 16

static volatile sig_atomic_t end, child;
static void on_term(int s) { (void)s; end = 1; }
static void on_child(int s) { (void)s; child = 1; }

static char *area;

static void *write_all(void *x) {
	for (unsigned k = 1; !end; k++)
		for (size_t i = 0; i < MEGABYTES << 20; i += 64) area[i] = (char)(k + i);
	return x;
}

static int descriptors(void) {
	int n = 0;
	DIR *d = opendir("/proc/self/fd");
	while (readdir(d)) n++;
	closedir(d);
	return n;
}

static int children(void) {
	char line[64];
	FILE *f = fopen("/proc/thread-self/children", "r");
	if (!f) return 0; // not every kernel has it
	int any = fgets(line, sizeof line, f) != NULL;
	fclose(f);
	return any;
}

int main(void) {
	area = malloc(MEGABYTES << 20);
	memset(area, 1, MEGABYTES << 20);
	signal(SIGTERM, on_term);
	signal(SIGCHLD, on_child);
	pthread_t t;
	pthread_create(&t, NULL, write_all, NULL);
	int before = descriptors();
	printf("ready\n");
	fflush(stdout);
	while (!end) {
		int st;
		if (waitpid(-1, &st, WNOHANG) != -1 || errno != ECHILD) return printf("a child\n"), 1;
		if (waitpid(-1, &st, WNOHANG | __WALL) != -1 || errno != ECHILD) return printf("a child of another kind\n"), 1;
		if (children()) return printf("a child in /proc\n"), 1;
		if (child) return printf("SIGCHLD\n"), 1;
		if (descriptors() != before) return printf("a descriptor\n"), 1;
	}
	pthread_join(t, NULL);
	printf("fine\n");
	return 0;
}
