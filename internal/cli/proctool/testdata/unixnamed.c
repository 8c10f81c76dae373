// Unix sockets with names: listeners with a path, a relative path and an
// abstract name, connections through them with unread bytes, sockets that wait
// to be accepted, datagrams from several named senders and from nobody.
#include "fixture.h"
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static socklen_t name(struct sockaddr_un *a, const char *text) {
  memset(a, 0, sizeof *a);
  a->sun_family = AF_UNIX;
  strcpy(a->sun_path, text);
  socklen_t n = offsetof(struct sockaddr_un, sun_path) + strlen(text) + 1;
  if (text[0] == '@') {
    a->sun_path[0] = 0;
    n--;
  }
  return n;
}

static int bound(int type, const char *text) {
  struct sockaddr_un a;
  socklen_t n = name(&a, text);
  int fd = socket(AF_UNIX, type, 0);
  if (text[0] != '@') unlink(text);
  need(fd >= 0 && !bind(fd, (void *)&a, n));
  return fd;
}

static int to(int type, const char *text) {
  struct sockaddr_un a;
  socklen_t n = name(&a, text);
  int fd = socket(AF_UNIX, type, 0);
  need(fd >= 0 && !connect(fd, (void *)&a, n));
  return fd;
}

static void from(int fd, const char *text, const char *what) {
  struct sockaddr_un a, want;
  socklen_t n = sizeof a, w = name(&want, text);
  char b[64];
  ssize_t k = recvfrom(fd, b, sizeof b, 0, (void *)&a, &n);
  need(k == (ssize_t)strlen(what) && !memcmp(b, what, k));
  need(*text ? n == w && !memcmp(&a, &want, n) : n <= sizeof(sa_family_t));
}

int main(void) {
  char path[64], abstract[64], wait[64], d1[64], d2[64], b[64];
  const char *dir = getcwd(b, sizeof b) ? "" : "";
  sprintf(path, "%ssocket", dir);
  sprintf(abstract, "@lam-test-%d-%d", getpid(), (int)time(0));
  sprintf(wait, "%s-wait", abstract);
  sprintf(d1, "%s-d1", abstract);
  sprintf(d2, "datagrams");
  int l = bound(SOCK_STREAM, path), m = bound(SOCK_SEQPACKET, abstract), q = bound(SOCK_STREAM, wait);
  need(!chmod(path, 0640) && !listen(l, 4) && !listen(m, 4) && !listen(q, 4));
  int a = to(SOCK_STREAM, path), s = accept(l, 0, 0);
  int c = to(SOCK_SEQPACKET, abstract), e = accept(m, 0, 0);
  need(write(a, "to the server", 13) == 13 && write(s, "to the client", 13) == 13);
  need(write(c, "one", 3) == 3 && write(c, "two", 3) == 3 && write(e, "three", 5) == 5);
  int gone = to(SOCK_STREAM, path), left = accept(l, 0, 0);
  need(write(gone, "bye", 3) == 3 && !close(gone));
  int w1 = to(SOCK_STREAM, wait), w2 = to(SOCK_STREAM, wait);
  int x1 = bound(SOCK_DGRAM, d1), x2 = bound(SOCK_DGRAM, d2), y = to(SOCK_DGRAM, d1);
  struct sockaddr_un at;
  socklen_t n = name(&at, d1);
  need(sendto(x2, "from a file", 11, 0, (void *)&at, n) == 11 && write(y, "from nobody", 11) == 11);
  n = name(&at, d2);
  need(sendto(x1, "abstract", 8, 0, (void *)&at, n) == 8);
  int ep = epoll_create1(0);
  struct epoll_event ev = {EPOLLIN, {.u64 = 99}};
  need(!epoll_ctl(ep, EPOLL_CTL_ADD, x1, &ev));
  pid_t kid = fork();
  if (kid == 0) { // a server for the traffic of the steps
    for (int i = 0; i < 12; i += 4) {
      int r = accept(l, 0, 0);
      need(r >= 0);
      for (ssize_t k; (k = read(r, b, sizeof b)) > 0;) need(write(r, b, k) == k);
      close(r);
    }
    gate();
    _exit(0);
  }
  int r = -1;
  for (int i = 0; i < 12; i++) {
    if (i % 4 == 0) {
      if (r >= 0) close(r);
      r = to(SOCK_STREAM, path);
    }
    char line[32];
    int k = sprintf(line, "line %d", i);
    need(write(r, line, k) == k);
    step(i);
    need(read(r, b, k) == k && !memcmp(b, line, k));
  }
  close(r);
  gate();
  int ws;
  need(waitpid(kid, &ws, 0) == kid && ws == 0);
  need(epoll_wait(ep, &ev, 1, 0) == 1 && ev.data.u64 == 99);
  need(read(s, b, 64) == 13 && !memcmp(b, "to the server", 13) && read(a, b, 64) == 13 && !memcmp(b, "to the client", 13));
  need(read(e, b, 64) == 3 && !memcmp(b, "one", 3) && read(e, b, 64) == 3 && read(c, b, 64) == 5 && !memcmp(b, "three", 5));
  need(read(left, b, 64) == 3 && !memcmp(b, "bye", 3) && read(left, b, 64) == 0);
  for (int i = 0; i < 2; i++) {
    int v = i ? w2 : w1, u = accept(q, 0, 0);
    need(u >= 0 && write(v, "hello", 5) == 5 && read(u, b, 64) == 5 && write(u, "you", 3) == 3 && read(v, b, 64) == 3);
  }
  from(x1, d2, "from a file");
  from(x1, "", "from nobody");
  from(x2, d1, "abstract");
  need(write(y, "again", 5) == 5);
  from(x1, "", "again");
  struct stat st;
  need(!stat(path, &st) && S_ISSOCK(st.st_mode) && (st.st_mode & 0777) == 0640);
  n = sizeof at;
  need(!getsockname(s, (void *)&at, &n) && !strcmp(at.sun_path, path));
  printf("fine\n");
  return 0;
}
