// UDP: bound, connected, unconnected sockets of both families, unread datagrams
// from sockets that live and from one that is closed, options, an epoll set.
#include "fixture.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static int bound(int family, struct sockaddr_storage *at, socklen_t *n) {
  memset(at, 0, sizeof *at);
  at->ss_family = family;
  if (family == AF_INET) {
    ((struct sockaddr_in *)at)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *n = sizeof(struct sockaddr_in);
  } else {
    ((struct sockaddr_in6 *)at)->sin6_addr = in6addr_loopback;
    *n = sizeof(struct sockaddr_in6);
  }
  int fd = socket(family, SOCK_DGRAM, 0);
  need(fd >= 0 && !bind(fd, (void *)at, *n) && !getsockname(fd, (void *)at, n));
  return fd;
}

static void got(int fd, struct sockaddr_storage *from, socklen_t m, const char *what) {
  struct sockaddr_storage a;
  socklen_t n = sizeof a;
  char b[64];
  ssize_t k = recvfrom(fd, b, sizeof b, 0, (void *)&a, &n);
  need(k == (ssize_t)strlen(what) && !memcmp(b, what, k) && n == m && !memcmp(&a, from, n));
}

int main(void) {
  struct sockaddr_storage va, vb, vc, vd;
  socklen_t na, nb, nc, nd;
  int a = bound(AF_INET, &va, &na), b = bound(AF_INET, &vb, &nb), c = bound(AF_INET6, &vc, &nc);
  int gone = bound(AF_INET, &vd, &nd), idle = socket(AF_INET, SOCK_DGRAM, 0), any = socket(AF_INET, SOCK_DGRAM, 0);
  need(!connect(b, (void *)&va, na));
  need(write(b, "connected", 9) == 9);
  need(sendto(gone, "closed since", 12, 0, (void *)&va, na) == 12 && !close(gone));
  need(sendto(c, "six", 3, 0, (void *)&vc, nc) == 3);
  int one = 1;
  need(!setsockopt(a, SOL_SOCKET, SO_BROADCAST, &one, sizeof one) && !fcntl(c, F_SETFL, O_NONBLOCK));
  int ep = epoll_create1(0);
  struct epoll_event ev = {EPOLLIN, {.u64 = 7}};
  need(!epoll_ctl(ep, EPOLL_CTL_ADD, a, &ev));
  for (int i = 0; i < 12; i++) {
    char line[32], back[32];
    int k = sprintf(line, "line %d", i);
    need(sendto(a, line, k, 0, (void *)&vb, nb) == k);
    if (i == 5) { // others than at the checkpoints
      close(idle);
      idle = socket(AF_INET, SOCK_DGRAM, 0);
    }
    step(i);
    need(read(b, back, 32) == k && !memcmp(line, back, k));
  }
  gate();
  need(epoll_wait(ep, &ev, 1, 0) == 1 && ev.data.u64 == 7);
  got(a, &vb, nb, "connected");
  got(a, &vd, nd, "closed since");
  got(c, &vc, nc, "six");
  char x[8];
  need(read(c, x, 8) == -1 && errno == EAGAIN);
  socklen_t k = sizeof one;
  one = 0;
  need(!getsockopt(a, SOL_SOCKET, SO_BROADCAST, &one, &k) && one);
  need(sendto(any, "x", 1, 0, (void *)&va, na) == 1 && read(a, x, 8) == 1 && idle >= 0);
  printf("fine\n");
  return 0;
}
