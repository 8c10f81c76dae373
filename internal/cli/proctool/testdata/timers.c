// Timers of every kind that go on ticking: an interval timer, POSIX timers
// with holes in their numbers, a timer for a thread, timerfds in an epoll set
// that is in another epoll set; one that fires only an hour later.
#include "fixture.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile int alarms, posix1, posix2;
static void on_alrm(int s) { (void)s; alarms++; }
static void on_rt(int s, siginfo_t *i, void *c) {
  (void)s, (void)c;
  if (i->si_value.sival_int == 1) posix1++;
  if (i->si_value.sival_int == 2) posix2++;
}

int main(void) {
  signal(SIGALRM, on_alrm);
  struct sigaction sa = {.sa_sigaction = on_rt, .sa_flags = SA_SIGINFO | SA_RESTART};
  sigaction(SIGRTMIN, &sa, NULL);
  struct itimerval it = {{0, 20000}, {0, 20000}};
  setitimer(ITIMER_REAL, &it, NULL);
  timer_t id[5], late;
  struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
  for (int i = 0; i < 4; i++) {
    ev.sigev_value.sival_int = i;
    need(timer_create(CLOCK_MONOTONIC, &ev, &id[i]) == 0);
  }
  timer_delete(id[0]);
  timer_delete(id[3]);
  ev.sigev_notify = SIGEV_THREAD_ID;
  ev.sigev_notify_thread_id = syscall(SYS_gettid);
  ev.sigev_value.sival_int = 2;
  timer_delete(id[2]);
  need(timer_create(CLOCK_MONOTONIC, &ev, &id[2]) == 0);
  struct itimerspec ts = {{0, 15000000}, {0, 15000000}}, hour = {{0, 0}, {3600, 0}}, left;
  need(timer_settime(id[1], 0, &ts, NULL) == 0 && timer_settime(id[2], 0, &ts, NULL) == 0);
  need(timer_create(CLOCK_REALTIME, NULL, &late) == 0 && timer_settime(late, 0, &hour, NULL) == 0);
  int tick = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), lazy = timerfd_create(CLOCK_MONOTONIC, 0);
  struct itimerspec one = {{0, 0}, {0, 1000000}}, ten = {{0, 10000000}, {0, 10000000}};
  timerfd_settime(tick, 0, &ten, NULL);
  timerfd_settime(lazy, 0, &hour, NULL);
  int once = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  timerfd_settime(once, 0, &one, NULL);
  pause_ms(5); // it has one unread tick now
  int inner = epoll_create1(0), outer = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0x1111222233334444};
  need(epoll_ctl(inner, EPOLL_CTL_ADD, tick, &e) == 0);
  e.data.u64 = 5;
  need(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &e) == 0);
  uint64_t ticks = 0, n;
  for (int s = 0; s < 12; s++) {
    struct epoll_event got;
    int k;
    while ((k = epoll_wait(outer, &got, 1, 1000)) < 0 && errno == EINTR) {}
    need(k == 1 && got.data.u64 == 5);
    need(epoll_wait(inner, &got, 1, 0) == 1 && got.data.u64 == 0x1111222233334444);
    if (read(tick, &n, 8) == 8) ticks += n;
    step(s);
  }
  gate();
  int a = alarms, b = posix1, c = posix2;
  for (int i = 0; i < 1000 && (alarms == a || posix1 == b || posix2 == c); i++) pause_ms(5);
  if (!(alarms > a && posix1 > b && posix2 > c && ticks >= 12)) printf("alarms %d>%d posix %d>%d %d>%d ticks %ld\n", alarms, a, posix1, b, posix2, c, (long)ticks);
  need(alarms > a && posix1 > b && posix2 > c && ticks >= 12);
  need(timer_gettime(late, &left) == 0 && left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 3600);
  struct itimerspec l2;
  need(timerfd_gettime(lazy, &l2) == 0 && l2.it_value.tv_sec > 3000);
  need(read(once, &n, 8) == 8 && n == 1);
  struct itimerval now;
  need(getitimer(ITIMER_REAL, &now) == 0 && now.it_interval.tv_usec == 20000);
  printf("fine\n");
  return 0;
}
