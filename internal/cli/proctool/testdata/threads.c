// Threads that are born and end all the time, with names, thread-local
// variables, robust mutexes, their own signal stacks, and calls that block:
// read, futex, poll, epoll_wait, nanosleep, accept-like waits on a pipe.
#include "fixture.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

static __thread long tls = 5;
static int quiet[2], end;
static pthread_mutex_t robust, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static void *blocked(void *arg) {
  long kind = (long)arg;
  char name[16], got[16], c;
  long tid = syscall(SYS_gettid);
  sprintf(name, "blocked-%ld", kind);
  pthread_setname_np(pthread_self(), name);
  tls = kind * 100;
  int r = 0, ep;
  struct epoll_event e = {.events = EPOLLIN};
  struct pollfd p = {quiet[0], POLLIN, 0};
  switch (kind) {
  case 0: r = read(quiet[0], &c, 1); break;
  case 1: r = poll(&p, 1, -1); break;
  case 2:
    ep = epoll_create1(0);
    epoll_ctl(ep, EPOLL_CTL_ADD, quiet[0], &e);
    r = epoll_wait(ep, &e, 1, -1);
    break;
  case 3:
    pthread_mutex_lock(&lock);
    while (!end) pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
    r = 1;
    break;
  }
  if (r != 1) printf("thread %ld: answer %d errno %d\n", kind, r, errno);
  need(r == 1 && tls == kind * 100 && tid == syscall(SYS_gettid));
  pthread_getname_np(pthread_self(), got, sizeof got);
  need(!strcmp(name, got));
  return (void *)(kind + 1);
}

static void *brief(void *arg) {
  tls += (long)arg;
  pause_ms(4);
  return (void *)tls;
}

static void *dies_with_lock(void *arg) {
  pthread_mutex_lock(&robust);
  return arg;
}

int main(void) {
  pthread_mutexattr_t a;
  pthread_mutexattr_init(&a);
  pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&robust, &a);
  need(pipe(quiet) == 0);
  pthread_t b[4], t;
  for (long i = 0; i < 4; i++) pthread_create(&b[i], NULL, blocked, (void *)i);
  for (long s = 0; s < 12; s++) {
    pthread_t x[3];
    void *r;
    for (long i = 0; i < 3; i++) pthread_create(&x[i], NULL, brief, (void *)(s + i));
    step(s);
    for (long i = 0; i < 3; i++) need(pthread_join(x[i], &r) == 0 && (long)r == 5 + s + i);
  }
  gate();
  pthread_create(&t, NULL, dies_with_lock, NULL);
  pthread_join(t, NULL);
  need(pthread_mutex_lock(&robust) == EOWNERDEAD);
  pthread_mutex_lock(&lock);
  end = 1;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
  need(write(quiet[1], "abc", 3) == 3);
  for (long i = 0; i < 4; i++) {
    void *r;
    need(pthread_join(b[i], &r) == 0 && (long)r == i + 1);
  }
  printf("fine\n");
  return 0;
}
