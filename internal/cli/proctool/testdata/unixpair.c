// Socketpairs of every type with unread messages in both directions, a half
// closed one, and eventfds, shared with a child.
#include "fixture.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

int main(void) {
  int st[2], sq[2], dg[2], half[2], gone[2];
  need(!socketpair(AF_UNIX, SOCK_STREAM, 0, st) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sq));
  need(!socketpair(AF_UNIX, SOCK_DGRAM, 0, dg) && !socketpair(AF_UNIX, SOCK_STREAM, 0, half));
  need(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, gone));
  need(write(gone[1], "last words", 10) == 10 && close(gone[1]) == 0);
  need(write(half[0], "half", 4) == 4 && shutdown(half[0], SHUT_WR) == 0);
  int ev = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
  static char big[30000], got[30000];
  for (int i = 0; i < 30000; i++) big[i] = (char)(i * 7);
  need(write(st[0], big, sizeof big) == sizeof big && write(st[1], "back", 4) == 4);
  pid_t kid = fork();
  if (kid == 0) {
    char b[8];
    need(read(st[0], b, 4) == 4 && !memcmp(b, "back", 4));
    need(write(st[0], "x", 1) == 1);
    _exit(0);
  }
  int ws;
  need(waitpid(kid, &ws, 0) == kid && ws == 0);
  for (int s = 0; s < 12; s++) {
    char m[40];
    int n = sprintf(m, "message %d", s);
    need(write(sq[0], m, n) == n && write(dg[1], m, n + 1) == n + 1);
    step(s);
    if (s % 2) {
      char a[40], b[40];
      for (int k = s - 1; k <= s; k++) {
        n = sprintf(m, "message %d", k);
        need(read(sq[1], a, 40) == n && !memcmp(a, m, n));
        need(read(dg[0], b, 40) == n + 1 && !memcmp(b, m, n));
      }
    }
  }
  gate();
  size_t have = 0;
  while (have < sizeof got) {
    ssize_t k = read(st[1], got + have, sizeof got - have);
    need(k > 0);
    have += k;
  }
  need(!memcmp(big, got, sizeof big));
  char b[16];
  need(read(st[1], b, 16) == 1 && b[0] == 'x');
  need(read(gone[0], b, 16) == 10 && !memcmp(b, "last words", 10) && read(gone[0], b, 16) == 0);
  need(fcntl(gone[0], F_GETFL) & O_NONBLOCK);
  need(read(half[1], b, 16) == 4 && read(half[1], b, 16) == 0);
  need(write(half[1], "on", 2) == 2 && read(half[0], b, 16) == 2);
  uint64_t one;
  for (int i = 0; i < 3; i++) need(read(ev, &one, 8) == 8 && one == 1);
  need(read(ev, &one, 8) == -1 && errno == EAGAIN);
  printf("fine\n");
  return 0;
}
