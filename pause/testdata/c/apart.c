// Has memory that a fork does not inherit and memory that it inherits empty,
// and checks their contents until SIGTERM. SIGUSR1 makes more such memory.
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (1 << 20)

static volatile sig_atomic_t end, more;
static void on_term(int s) { (void)s; end = 1; }
static void on_more(int s) { (void)s; more = 1; }

static char *area(int advice, int fill) {
	char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // keeps it apart from others
	if (advice) madvise(p, SIZE, advice);
	memset(p, fill, SIZE);
	return p;
}

static int holds(const char *p, char fill) {
	for (int i = 0; i < SIZE; i++)
		if (p[i] != fill) return 0;
	return 1;
}

int main(void) {
	signal(SIGTERM, on_term);
	signal(SIGUSR1, on_more);
	char *gone = area(MADV_DONTFORK, 1), *wiped = area(MADV_WIPEONFORK, 2), *plain = area(0, 3);
	printf("ready\n");
	fflush(stdout);
	for (char k = 3; !end;) {
		if (!holds(gone, 1) || !holds(wiped, 2) || !holds(plain, k)) return fprintf(stderr, "memory differs\n"), 1;
		if (more) {
			more = 0;
			memset(plain, ++k, SIZE);
			madvise(plain, SIZE, MADV_WIPEONFORK);
			printf("changed\n");
			fflush(stdout);
		}
	}
	return 0;
}
