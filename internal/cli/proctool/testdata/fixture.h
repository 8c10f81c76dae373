// What the fixtures share.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

// pause_ms sleeps.
static inline void pause_ms(int ms) {
  struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
  while (nanosleep(&ts, &ts)) {}
}

// step prints the line that the tests wait for, and sleeps a little.
static inline void step(int n) {
  printf("step %d ok\n", n);
  fflush(stdout);
  pause_ms(10);
}

// gate waits until the test has done all it wanted: until a file named "gate"
// is in the working directory.
static inline void gate(void) {
#ifndef NO_GATE
  while (access("gate", F_OK)) pause_ms(2);
#endif
}

// need ends the program when something is not as it must be.
#define need(what)                                             \
  do {                                                         \
    if (!(what)) {                                             \
      printf("line %d: not so: %s\n", __LINE__, #what);        \
      fflush(stdout);                                          \
      _exit(9);                                                \
    }                                                          \
  } while (0)
