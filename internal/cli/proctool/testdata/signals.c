// Signals: queued ones with values, standard ones, for the process and for a
// thread, blocked all the time and taken at the end in order; handlers,
// flags, an alternate stack in use while the program is disturbed.
#include "fixture.h"
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

static volatile int in_handler, seen;
static char stack[65536];
static volatile int sent;

static void on_usr2(int sig, siginfo_t *info, void *ctx) {
  char here;
  (void)ctx;
  need(sig == SIGUSR2 && info->si_value.sival_int == 77);
  need(&here > stack && &here < stack + sizeof stack);
  in_handler = 1;
  for (int s = 4; s < 8; s++) step(s); // disturbed on the alternate stack
  in_handler = 0;
  seen++;
}

static void *waiter(void *arg) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  while (!sent) pause_ms(1);
  gate();
  siginfo_t info;
  struct timespec zero = {0, 0};
  need(sigtimedwait(&set, &info, &zero) == SIGUSR1);
  need(sigtimedwait(&set, &info, &zero) == -1);
  return arg;
}

int main(void) {
  sigset_t set, old;
  sigfillset(&set);
  sigdelset(&set, SIGUSR2);
  sigdelset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, NULL);
  stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
  sigaltstack(&ss, NULL);
  struct sigaction sa = {.sa_sigaction = on_usr2, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
  sigaddset(&sa.sa_mask, SIGTERM);
  sigaction(SIGUSR2, &sa, NULL);
  signal(SIGPIPE, SIG_IGN);
  pthread_t t;
  pthread_create(&t, NULL, waiter, NULL);
  for (int i = 0; i < 5; i++) sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 100 + i});
  kill(getpid(), SIGHUP);
  pthread_kill(t, SIGUSR1);
  sent = 1;
  for (int s = 0; s < 4; s++) step(s);
  sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = 77});
  need(seen == 1 && !in_handler);
  for (int s = 8; s < 12; s++) step(s);
  gate();
  struct timespec zero = {0, 0};
  siginfo_t info;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 3);
  for (int i = 0; i < 5; i++) need(sigtimedwait(&set, &info, &zero) == SIGRTMIN + 3 && info.si_value.sival_int == 100 + i);
  need(sigtimedwait(&set, &info, &zero) == -1);
  sigemptyset(&set);
  sigaddset(&set, SIGHUP);
  need(sigtimedwait(&set, &info, &zero) == SIGHUP && info.si_pid == getpid());
  pthread_join(t, NULL);
  struct sigaction got;
  sigaction(SIGUSR2, NULL, &got);
  need(got.sa_sigaction == on_usr2 && (got.sa_flags & SA_ONSTACK) && sigismember(&got.sa_mask, SIGTERM));
  sigaction(SIGPIPE, NULL, &got);
  need(got.sa_handler == SIG_IGN);
  sigprocmask(SIG_BLOCK, NULL, &old);
  need(sigismember(&old, SIGRTMIN + 3) && !sigismember(&old, SIGUSR2));
  printf("fine\n");
  return 0;
}
