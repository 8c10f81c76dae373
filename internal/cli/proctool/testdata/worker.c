// Computes in several threads with a heap, mappings, a file that it appends
// to, thread-local variables, a signal handler, an alternate stack and
// registers full of doubles. Prints one line per step and a hash at the end:
// the output does not depend on when it is interrupted.
#include "fixture.h"
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static __thread uint64_t mine = 1;
static pthread_barrier_t barrier;
static volatile uint64_t sums[8];
static volatile sig_atomic_t caught;
static int threads, steps;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void on_usr1(int sig) { (void)sig; caught++; }

static void *work(void *arg) {
  long id = (long)arg;
  double x = 1.0 + id;
  for (int s = 0; s < steps; s++) {
    for (int i = 0; i < 20000; i++) {
      x = x * 1.0000001 + 0.5 / x;
      mine = mine * 6364136223846793005ull + 1442695040888963407ull;
    }
    uint64_t bits;
    memcpy(&bits, &x, 8);
    sums[id] ^= bits ^ mine;
    if (getpid() == syscall(SYS_gettid) && id) abort();
    pthread_mutex_lock(&lock);
    pthread_mutex_unlock(&lock);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
  }
  return (void *)syscall(SYS_gettid);
}

int main(int argc, char **argv) {
  threads = argc > 1 ? atoi(argv[1]) : 1;
  steps = argc > 2 ? atoi(argv[2]) : 20;
  size_t mem = (argc > 3 ? strtoul(argv[3], 0, 10) : 4) << 20;
  FILE *log = argc > 4 ? fopen(argv[4], "a") : NULL;
  int pace_us = argc > 5 ? atoi(argv[5]) : 10000;
  uint64_t *anon = mmap(0, mem, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mmap(0, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint64_t *ro = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ro[3] = 0x1234567;
  mprotect(ro, 8192, PROT_READ);
  char *heap = malloc(100000);
  memset(heap, 7, 100000);
  stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536};
  sigaltstack(&ss, NULL);
  struct sigaction sa = {.sa_handler = on_usr1, .sa_flags = SA_ONSTACK | SA_RESTART};
  sigaction(SIGUSR1, &sa, NULL);
  int pid = getpid();
  int ev = eventfd(41, 0), ep = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0xabcdef};
  epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e);
  int pfd[2];
  if (pipe(pfd) || write(pfd[1], "in the pipe", 11) != 11) return 9;
  pthread_barrier_init(&barrier, NULL, threads + 1);
  pthread_t t[8];
  for (long i = 1; i <= threads; i++) pthread_create(&t[i - 1], NULL, work, (void *)i);
  printf("pid %d\n", pid);
  fflush(stdout);
  for (int s = 0; s < steps; s++) {
    for (size_t i = 0; i < mem / 8; i += 64) anon[i] = anon[i] * 31 + i + s;
    raise(SIGUSR1);
    pthread_barrier_wait(&barrier);
    printf("step %d caught %d\n", s, (int)caught);
    fflush(stdout);
    if (log) fprintf(log, "log %d\n", s), fflush(log);
    struct timespec ts = {0, pace_us * 1000L};
    nanosleep(&ts, NULL);
    pthread_barrier_wait(&barrier);
  }
  gate();
  uint64_t h = 1469598103934665603ull;
  for (size_t i = 0; i < mem / 8; i++) h = (h ^ anon[i]) * 1099511628211ull;
  for (int i = 0; i < 100000; i++) h = (h ^ (uint8_t)heap[i]) * 1099511628211ull;
  for (int i = 0; i < threads; i++) {
    void *r;
    pthread_join(t[i], &r);
    h = (h ^ sums[i + 1]) * 1099511628211ull;
  }
  struct epoll_event got;
  if (epoll_wait(ep, &got, 1, 0) != 1 || got.data.u64 != 0xabcdef) return 3;
  uint64_t n;
  if (read(ev, &n, 8) != 8 || n != 41) return 4;
  char buf[16] = {0};
  if (read(pfd[0], buf, 15) != 11 || strcmp(buf, "in the pipe")) return 5;
  if (ro[3] != 0x1234567 || getpid() != pid) return 6;
  printf("hash %016llx\n", (unsigned long long)h);
  return 0;
}
