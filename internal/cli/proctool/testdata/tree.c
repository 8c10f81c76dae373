// A tree of processes: pipes between them, a grandchild, a child that has
// ended and is not waited for, exit statuses, process groups.
#include "fixture.h"
#include <signal.h>
#include <sys/wait.h>

static int child(int in, int out, int grand) {
  int n;
  pid_t me = getpid(), kid = -1;
  int p[2];
  if (grand) {
    need(pipe(p) == 0);
    if ((kid = fork()) == 0) {
      char c;
      setpgid(0, 0);
      while (read(p[0], &c, 1) == 1 && c != 'q') {}
      need(getpgrp() == getpid() && getppid() == me);
      _exit(7);
    }
  }
  while (read(in, &n, sizeof n) == sizeof n && n >= 0) {
    need(getpid() == me);
    n = n * 3 + 1;
    need(write(out, &n, sizeof n) == sizeof n);
  }
  if (grand) {
    int ws;
    need(write(p[1], "q", 1) == 1);
    need(waitpid(kid, &ws, 0) == kid && WIFEXITED(ws) && WEXITSTATUS(ws) == 7);
  }
  return 5;
}

int main(void) {
  int to[2][2], from[2][2];
  pid_t kids[2], zombie, killed;
  need((zombie = fork()) >= 0);
  if (zombie == 0) _exit(42);
  need((killed = fork()) >= 0);
  if (killed == 0) { pause(); _exit(0); }
  kill(killed, SIGTERM);
  for (int i = 0; i < 2; i++) {
    need(pipe(to[i]) == 0 && pipe(from[i]) == 0);
    if ((kids[i] = fork()) == 0) _exit(child(to[i][0], from[i][1], i));
  }
  pid_t me = getpid();
  for (int s = 0; s < 12; s++) {
    for (int i = 0; i < 2; i++) {
      int n = s * 10 + i, r;
      need(write(to[i][1], &n, sizeof n) == sizeof n);
      if (s % 3 == 0) pause_ms(3);
      need(read(from[i][0], &r, sizeof r) == sizeof r && r == n * 3 + 1);
    }
    step(s);
  }
  gate();
  need(getpid() == me);
  for (int i = 0; i < 2; i++) {
    int n = -1, ws;
    need(write(to[i][1], &n, sizeof n) == sizeof n);
    need(waitpid(kids[i], &ws, 0) == kids[i] && WIFEXITED(ws) && WEXITSTATUS(ws) == 5);
  }
  int ws;
  need(waitpid(zombie, &ws, 0) == zombie && WIFEXITED(ws) && WEXITSTATUS(ws) == 42);
  need(waitpid(killed, &ws, 0) == killed && WIFSIGNALED(ws) && WTERMSIG(ws) == SIGTERM);
  printf("fine\n");
  return 3;
}
