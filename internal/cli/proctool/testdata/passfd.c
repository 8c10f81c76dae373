// Descriptors on their way through unix sockets: files, a pipe whose end nobody
// else has, a socket with a message of its own, two in one message, between
// plain bytes of a stream.
#include "fixture.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static void send_fds(int s, const char *text, int n, const int *fds) {
  struct iovec iov = {(void *)text, strlen(text)};
  char control[CMSG_SPACE(4 * sizeof(int))];
  memset(control, 0, sizeof control);
  struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(n * sizeof(int))};
  struct cmsghdr *c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(n * sizeof(int));
  memcpy(CMSG_DATA(c), fds, n * sizeof(int));
  need(sendmsg(s, &m, 0) == (ssize_t)iov.iov_len);
}

static void receive_fds(int s, const char *text, int n, int *fds) {
  char b[64], control[256];
  struct iovec iov = {b, strlen(text)};
  struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  need(recvmsg(s, &m, 0) == (ssize_t)strlen(text) && !memcmp(b, text, strlen(text)));
  struct cmsghdr *c = CMSG_FIRSTHDR(&m);
  need(c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(n * sizeof(int)));
  memcpy(fds, CMSG_DATA(c), n * sizeof(int));
}

int main(void) {
  int s[2], g[2], p[2], in[2];
  need(!socketpair(AF_UNIX, SOCK_STREAM, 0, s) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, g));
  need(!pipe(p) && !socketpair(AF_UNIX, SOCK_STREAM, 0, in));
  int file = open("passed", O_RDWR | O_CREAT | O_TRUNC, 0600), shared = open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600);
  need(file >= 0 && shared >= 0 && write(file, "contents", 8) == 8 && write(shared, "abc", 3) == 3);
  int ev = eventfd(5, 0);
  need(write(p[1], "in the pipe", 11) == 11);
  need(write(s[0], "plain", 5) == 5);
  send_fds(s[0], "two", 2, (int[]){file, ev});
  need(write(s[0], "more", 4) == 4);
  need(write(in[1], "inside", 6) == 6);
  send_fds(s[0], "end", 1, (int[]){in[0]});
  send_fds(g[0], "pipe", 2, (int[]){p[0], shared});
  need(!close(file) && !close(ev) && !close(p[0]) && !close(in[0]));
  for (int i = 0; i < 12; i++) step(i);
  gate();
  int fds[2];
  char b[64];
  need(read(s[1], b, 5) == 5 && !memcmp(b, "plain", 5));
  receive_fds(s[1], "two", 2, fds);
  need(lseek(fds[0], 0, SEEK_CUR) == 8 && pread(fds[0], b, 64, 0) == 8 && !memcmp(b, "contents", 8));
  uint64_t v;
  need(read(fds[1], &v, 8) == 8 && v == 5);
  need(read(s[1], b, 4) == 4 && !memcmp(b, "more", 4));
  receive_fds(s[1], "end", 1, fds);
  need(read(fds[0], b, 64) == 6 && !memcmp(b, "inside", 6) && write(fds[0], "out", 3) == 3 && read(in[1], b, 64) == 3);
  receive_fds(g[1], "pipe", 2, fds);
  need(read(fds[0], b, 64) == 11 && write(p[1], "on", 2) == 2 && read(fds[0], b, 64) == 2);
  need(lseek(fds[1], 1, SEEK_SET) == 1 && lseek(shared, 0, SEEK_CUR) == 1); // still one description
  printf("fine\n");
  return 0;
}
