// TCP within the tree: echo traffic with a child over IPv4 and IPv6, bytes that
// wait in both directions, half-closed and wholly closed ends, a queue of
// connections that were not accepted, more bytes than a receiver has room for,
// a listener, an epoll set, options.
#include "fixture.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

static int listener(int family, struct sockaddr_storage *at, socklen_t *len) {
  memset(at, 0, sizeof *at);
  int fd = socket(family, SOCK_STREAM, 0);
  if (family == AF_INET) {
    struct sockaddr_in *a = (void *)at;
    a->sin_family = AF_INET;
    a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *len = sizeof *a;
  } else {
    struct sockaddr_in6 *a = (void *)at;
    a->sin6_family = AF_INET6;
    a->sin6_addr = in6addr_loopback;
    *len = sizeof *a;
  }
  need(fd >= 0 && !bind(fd, (void *)at, *len) && !listen(fd, 8));
  need(!getsockname(fd, (void *)at, len));
  return fd;
}

static void pair(int l, struct sockaddr_storage *at, socklen_t len, int *a, int *b) {
  *a = socket(at->ss_family, SOCK_STREAM, 0);
  need(!connect(*a, (void *)at, len));
  *b = accept(l, 0, 0);
  need(*b >= 0);
}

static void all(int fd, char *buf, int n) {
  for (int at = 0; at < n;) {
    int k = read(fd, buf + at, n - at);
    need(k > 0);
    at += k;
  }
}

// put writes as much as fits and returns how much that was.
static int put(int fd, const char *from, int most) {
  int old = fcntl(fd, F_GETFL), n = 0, k;
  fcntl(fd, F_SETFL, old | O_NONBLOCK);
  while (n < most && (k = write(fd, from + n, most - n)) > 0) n += k;
  fcntl(fd, F_SETFL, old);
  return n;
}

static char big[3 << 20], got[3 << 20];

int main(void) {
  struct sockaddr_storage v4, v6;
  socklen_t n4, n6;
  int l4 = listener(AF_INET, &v4, &n4), l6 = listener(AF_INET6, &v6, &n6);
  int six = n6 > 0;
  for (unsigned i = 0; i < sizeof big; i++) big[i] = (char)(i * 7 + i / 1000);

  // Bytes in both directions that nobody reads before the end.
  int a, b, fa, fb, ha, hb, ca, cb, oa, ob;
  pair(l4, &v4, n4, &a, &b);
  need(put(a, big, 30000) == 30000 && put(b, big + 100, 20000) == 20000);
  // More than the receiver has room for.
  pair(l4, &v4, n4, &fa, &fb);
  int full = put(fa, big, sizeof big);
  need(full > 100000);
  // Half closed; closed by one side; ended in both directions.
  pair(l4, &v4, n4, &ha, &hb);
  need(write(ha, "half", 4) == 4 && !shutdown(ha, SHUT_WR));
  pair(l4, &v4, n4, &ca, &cb);
  need(write(ca, "last words", 10) == 10 && !close(ca));
  pair(l4, &v4, n4, &oa, &ob);
  need(write(oa, "over", 4) == 4 && !shutdown(oa, SHUT_WR) && !shutdown(ob, SHUT_WR));
  // Connected and not accepted.
  struct sockaddr_storage vq;
  socklen_t nq;
  int lq = listener(AF_INET, &vq, &nq), q1 = socket(AF_INET, SOCK_STREAM, 0), q2 = socket(AF_INET, SOCK_STREAM, 0);
  need(!connect(q1, (void *)&vq, nq) && !connect(q2, (void *)&vq, nq));
  // A reset that was not told yet.
  int ra, rb;
  pair(l4, &v4, n4, &ra, &rb);
  struct linger rude = {1, 0};
  need(!setsockopt(ra, SOL_SOCKET, SO_LINGER, &rude, sizeof rude) && !close(ra));
  int one = 1;
  need(!setsockopt(a, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) && !setsockopt(b, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
  need(!fcntl(fb, F_SETFL, O_NONBLOCK));
  int ep = epoll_create1(0);
  struct epoll_event ev = {EPOLLIN, {.u64 = 4711}};
  need(!epoll_ctl(ep, EPOLL_CTL_ADD, b, &ev));
  struct sockaddr_storage na, nb;
  socklen_t la = sizeof na, lb = sizeof nb;
  need(!getsockname(a, (void *)&na, &la) && !getpeername(b, (void *)&nb, &lb) && la == lb && !memcmp(&na, &nb, la));

  pid_t kid = fork();
  if (kid == 0) { // an echo over either family, a connection for every few lines
    for (int s = 0; s < 12; s += 3) {
      int e = accept(s % 2 ? l6 : l4, 0, 0);
      need(e >= 0);
      char line[64];
      for (int k; (k = read(e, line, sizeof line)) > 0;) need(write(e, line, k) == k);
      close(e);
    }
    gate();
    _exit(0);
  }
  int c = -1;
  char line[64], back[64];
  for (int s = 0; s < 12; s++) {
    if (s % 3 == 0) {
      if (c >= 0) close(c);
      struct sockaddr_storage *to = s % 2 ? &v6 : &v4;
      c = socket(to->ss_family, SOCK_STREAM, 0);
      need(!connect(c, (void *)to, s % 2 ? n6 : n4));
    }
    int n = sprintf(line, "line %d %s", s, s % 2 ? "of the odd ones" : "");
    need(write(c, line, n) == n);
    step(s); // the echo is on its way
    all(c, back, n);
    need(!memcmp(line, back, n));
  }
  close(c);
  gate();
  int ws;
  need(waitpid(kid, &ws, 0) == kid && ws == 0);
  need(epoll_wait(ep, &ev, 1, 0) == 1 && ev.data.u64 == 4711);
  all(b, got, 30000);
  need(!memcmp(got, big, 30000));
  all(a, got, 20000);
  need(!memcmp(got, big + 100, 20000));
  need(write(b, "on", 2) == 2 && read(a, back, 64) == 2);
  need(fcntl(fb, F_GETFL) & O_NONBLOCK);
  need(!fcntl(fb, F_SETFL, 0));
  all(fb, got, full);
  need(!memcmp(got, big, full));
  need(write(fa, "x", 1) == 1 && read(fb, back, 64) == 1 && write(fb, "yz", 2) == 2 && read(fa, back, 64) == 2);
  all(hb, back, 4);
  need(!memcmp(back, "half", 4) && read(hb, back, 64) == 0);
  need(write(hb, "answer", 6) == 6 && read(ha, back, 64) == 6);
  all(cb, back, 10);
  need(!memcmp(back, "last words", 10) && read(cb, back, 64) == 0);
  all(ob, back, 4);
  need(!memcmp(back, "over", 4) && read(ob, back, 64) == 0 && read(oa, back, 64) == 0);
  need(read(rb, back, 64) == -1 && errno == ECONNRESET && read(rb, back, 64) == 0);
  for (int i = 0; i < 2; i++) {
    struct sockaddr_in mine, his;
    socklen_t k = sizeof mine, h = sizeof his;
    int q = i ? q2 : q1, e = accept(lq, (void *)&his, &h);
    need(e >= 0 && !getsockname(q, (void *)&mine, &k) && !memcmp(&mine, &his, sizeof mine));
    need(write(q, "hello", 5) == 5 && read(e, back, 64) == 5);
  }
  socklen_t k = sizeof one;
  one = 0;
  need(!getsockopt(a, IPPROTO_TCP, TCP_NODELAY, &one, &k) && one);
  one = 0;
  need(!getsockopt(b, SOL_SOCKET, SO_KEEPALIVE, &one, &k) && one);
  one = 1;
  need(!getsockopt(l4, SOL_SOCKET, SO_REUSEADDR, &one, &k) && !one);
  la = sizeof nb;
  need(!getsockname(a, (void *)&nb, &la) && !memcmp(&na, &nb, la) && six);
  printf("fine\n");
  return 0;
}
