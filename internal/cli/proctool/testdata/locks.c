// File locks of all kinds, changed at every step and asked for by another
// process: POSIX record locks of two processes, locks of open file
// descriptions (also through a descriptor that was passed on by fork), flock.
#include "fixture.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>

static int rec, ofd, whole;

static int set(int fd, int cmd, int type, off_t start, off_t len) {
  struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
  return fcntl(fd, cmd, &l);
}

// holder returns who keeps [start, start+len) from being locked for writing, 0
// for nobody, and where that lock begins.
static pid_t holder(int fd, int cmd, off_t start, off_t len, off_t *from, off_t *n, int *type) {
  struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
  need(fcntl(fd, cmd, &l) == 0);
  *from = l.l_start, *n = l.l_len, *type = l.l_type;
  return l.l_type == F_UNLCK ? 0 : l.l_pid;
}

// check is asked by the child: are the locks of the parent those of step s?
static void check(int s, pid_t parent, int mine) {
  off_t from, n;
  int type;
  need(holder(mine, F_GETLK, 0, 900, &from, &n, &type) == parent && from == 10 * s && n == 5 && type == F_WRLCK);
  need(holder(mine, F_GETLK, 10 * s + 5, 900 - 10 * s - 5, &from, &n, &type) == 0);
  need(holder(mine, F_GETLK, 1000, 1, &from, &n, &type) == parent && from == 1000 && n == 100 + s && type == F_RDLCK);
  int other = open("ofd", O_RDWR);
  need(other >= 0 && holder(other, F_OFD_GETLK, 0, 0, &from, &n, &type) == -1 && from == 100 + s && n == 10);
  need(holder(other, F_OFD_GETLK, 110 + s, 0, &from, &n, &type) == 0);
  close(other);
  other = open("whole", O_RDWR);
  int shared = flock(other, LOCK_SH | LOCK_NB);
  if (s % 3 == 0) need(shared < 0 && errno == EWOULDBLOCK);
  if (s % 3 == 1) need(shared == 0 && flock(other, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
  if (s % 3 == 2) need(shared == 0 && flock(other, LOCK_EX | LOCK_NB) == 0);
  close(other);
}

static void child(pid_t parent, int in, int out) {
  int mine = open("child", O_RDWR | O_CREAT, 0600), asking = open("rec", O_RDWR), s;
  need(mine >= 0 && asking >= 0);
  while (read(in, &s, sizeof s) == sizeof s) {
    if (s >= 0) check(s, parent, asking);
    else need(set(mine, F_SETLK, F_UNLCK, 0, 0) == 0 && set(mine, F_SETLK, F_WRLCK, 5000 - s, 7) == 0);
    need(write(out, &s, sizeof s) == sizeof s);
  }
  _exit(0);
}

int main(void) {
  rec = open("rec", O_RDWR | O_CREAT, 0600), ofd = open("ofd", O_RDWR | O_CREAT, 0600), whole = open("whole", O_RDWR | O_CREAT, 0600);
  int ask[2], answer[2], again, type;
  need(rec >= 0 && ofd >= 0 && whole >= 0 && pipe(ask) == 0 && pipe(answer) == 0);
  pid_t me = getpid(), kid = fork();
  if (kid == 0) {
    close(rec);
    close(ask[1]);
    close(answer[0]);
    child(me, ask[0], answer[1]);
  }
  close(ask[0]);
  close(answer[1]);
  int file = open("child", O_RDWR | O_CREAT, 0600);
  for (int s = 0; s < 12; s++) {
    need(set(rec, F_SETLK, F_UNLCK, 0, 0) == 0 && set(rec, F_SETLK, F_WRLCK, 10 * s, 5) == 0 && set(rec, F_SETLK, F_RDLCK, 1000, 100 + s) == 0);
    need(set(ofd, F_OFD_SETLK, F_UNLCK, 0, 0) == 0 && set(ofd, F_OFD_SETLK, F_WRLCK, 100 + s, 10) == 0);
    need(flock(whole, s % 3 == 0 ? LOCK_EX : s % 3 == 1 ? LOCK_SH : LOCK_UN) == 0);
    int move = -1 - s;
    need(write(ask[1], &move, sizeof move) == sizeof move && read(answer[0], &again, sizeof again) == sizeof again && again == move);
    step(s);
    need(write(ask[1], &s, sizeof s) == sizeof s && read(answer[0], &again, sizeof again) == sizeof again && again == s);
    off_t from, n;
    need(holder(file, F_GETLK, 0, 0, &from, &n, &type) == kid && from == 5001 + s && n == 7);
  }
  gate();
  close(ask[1]);
  int status;
  need(waitpid(kid, &status, 0) == kid && status == 0);
  printf("fine\n");
  return 0;
}
