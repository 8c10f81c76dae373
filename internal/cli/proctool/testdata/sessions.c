// Sessions and process groups: a daemon that was forked twice, in a session
// whose leader is gone; a job-control like pair of groups, one of them without
// its first process; a child that stayed in the session which its parent left.
// Groups change at every step.
#include "fixture.h"
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct {
  volatile int step, daemon_step, moved;
  volatile pid_t daemon, daemon_sid, daemon_pgid, orphan_group, left, left_sid, left_pgid, main_sid, want;
} *all;

static void daemon_body(void) {
  all->daemon_sid = getsid(0), all->daemon_pgid = getpgid(0);
  all->daemon = getpid();
  need(all->daemon_sid != getpid());
  for (int seen = -1; all->step < 100;) {
    if (seen != all->step) {
      seen = all->step;
      need(getsid(0) == all->daemon_sid && getpgid(0) == all->daemon_pgid && getppid() == 1);
      all->daemon_step = seen;
    }
    pause_ms(1);
  }
  _exit(0);
}

int main(void) {
  all = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  need(all != MAP_FAILED);
  all->step = -1;
  all->main_sid = getsid(0);
  pid_t middle = fork();
  if (middle == 0) {
    setsid();
    if (fork() == 0) daemon_body();
    _exit(0);
  }
  int status;
  need(waitpid(middle, &status, 0) == middle && status == 0);
  while (!all->daemon) pause_ms(1);
  need(all->daemon_sid == middle && all->daemon_pgid == middle);

  // A group whose first process ends: like a pipeline whose first part is done.
  pid_t first = fork();
  if (first == 0) {
    setpgid(0, 0);
    for (;;) pause();
  }
  setpgid(first, first);
  pid_t second = fork();
  if (second == 0) {
    need(setpgid(0, first) == 0);
    all->orphan_group = getpgid(0);
    for (;;) pause();
  }
  while (!all->orphan_group) pause_ms(1);
  kill(first, SIGKILL);
  need(waitpid(first, &status, 0) == first);

  // A parent that begins a session, its child does not.
  pid_t leader = fork();
  if (leader == 0) {
    pid_t kid = fork();
    if (kid == 0) {
      all->left_sid = getsid(0), all->left_pgid = getpgid(0);
      all->left = getpid();
      for (;;) pause();
    }
    while (!all->left) pause_ms(1);
    need(setsid() == getpid());
    all->moved = 1;
    for (;;) pause();
  }
  while (!all->moved) pause_ms(1);

  // One that changes between two groups.
  pid_t wander = fork();
  if (wander == 0)
    for (;;) {
      if (all->want && getpgid(0) != all->want) need(setpgid(0, all->want) == 0);
      pause_ms(1);
    }
  for (int s = 0; s < 12; s++) {
    pid_t want = s % 3 == 0 ? wander : s % 3 == 1 ? first : getpgid(0);
    all->want = want;
    while (getpgid(wander) != want) pause_ms(1);
    all->step = s;
    while (all->daemon_step != s) pause_ms(1);
    step(s);
    need(getpgid(wander) == want && getsid(wander) == all->main_sid);
    need(getpgid(second) == first && getsid(second) == all->main_sid);
    need(getsid(all->left) == all->left_sid && getpgid(all->left) == all->left_pgid);
    need(getsid(leader) == leader && getsid(all->daemon) == middle && getpgid(all->daemon) == middle);
    need(kill(-first, 0) == 0 && kill(first, 0) < 0);
  }
  gate();
  all->step = 100;
  kill(leader, SIGKILL);
  kill(all->left, SIGKILL);
  need(kill(-first, SIGTERM) == 0 && kill(wander, SIGKILL) == 0);
  need(waitpid(second, &status, 0) == second && WTERMSIG(status) == SIGTERM);
  need(waitpid(wander, &status, 0) == wander && waitpid(leader, &status, 0) == leader);
  while (kill(all->daemon, 0) == 0) pause_ms(1);
  printf("fine\n");
  return 0;
}
