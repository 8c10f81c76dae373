// duplex: full-duplex streams that check themselves.
//
//	duplex listen|connect|both IP PORT CONNS TX RX RATE EDGE HOLD
//
// Every connection sends TX bytes of a pattern and expects RX bytes of the
// other end's (both: TX each). RATE > 0 reads at most RATE bytes per
// connection and millisecond. EDGE 1 uses edge-triggered epoll. While the file
// HOLD exists the program waits before it begins. It exits 0 when every byte
// was right, in order and complete. All state is in static memory: a test can
// roll it back from outside.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAXCONN = 512, CHUNK = 1 << 16 };
static struct conn {
	int fd;
	uint64_t out, in; // streams: seeds of the patterns
	uint64_t tx, rx, txmax, rxmax;
	int canread, canwrite, eof, shut, armed;
} conns[MAXCONN];
static int nconn, ep;
static unsigned char buf[CHUNK + 16], ref[CHUNK + 16];

static void say(const char *s) { if (write(2, s, strlen(s)) < 0) _exit(9); }
static void die(const char *what, int code)
{
	say("duplex: "); say(what); say(": "); say(strerror(errno)); say("\n");
	_exit(code);
}

// sayconn tells of a connection before a failure is reported.
static void sayconn(struct conn *c)
{
	char line[200];
	snprintf(line, sizeof line, "fd %d tx %llu/%llu rx %llu/%llu eof %d shut %d: ", c->fd, (unsigned long long)c->tx,
		 (unsigned long long)c->txmax, (unsigned long long)c->rx, (unsigned long long)c->rxmax, c->eof, c->shut);
	say(line);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

// pattern returns where in p the n bytes of the stream from offset off begin.
static unsigned char *pattern(unsigned char *p, uint64_t stream, uint64_t off, size_t n)
{
	uint64_t w = off / 8, last = (off + n + 7) / 8;
	for (uint64_t *q = (uint64_t *)p; w < last; w++, q++)
		*q = mix(w + (stream << 40));
	return p + off % 8;
}

static void nap(long us)
{
	struct timespec ts = { 0, us * 1000 };
	nanosleep(&ts, NULL);
}

static void add(int fd, int id, int side, uint64_t tx, uint64_t rx, int edge)
{
	struct conn *c = &conns[nconn];
	int one = 1, idle = 77;
	c->fd = fd;
	c->out = id * 2 + side, c->in = id * 2 + !side;
	c->txmax = tx, c->rxmax = rx;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	struct epoll_event ev = { EPOLLIN | EPOLLRDHUP | (edge ? EPOLLET | EPOLLOUT : 0), { .u64 = 0x1234560000ull + nconn } };
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev)) die("epoll add", 2);
	nconn++;
}

static void rd(struct conn *c, long rate)
{
	long left = rate ? rate : 1 << 20;
	while (c->canread && !c->eof && left > 0) {
		ssize_t n = recv(c->fd, buf, left < CHUNK ? left : CHUNK, 0);
		if (n < 0 && errno == EAGAIN) { c->canread = 0; return; }
		if (n < 0) sayconn(c), die("recv", 3);
		if (n == 0) {
			if (c->rx != c->rxmax) sayconn(c), die("short stream", 4);
			c->eof = 1;
			return;
		}
		if (memcmp(buf, pattern(ref, c->in, c->rx, n), n)) sayconn(c), die("WRONG BYTES", 5);
		c->rx += n;
		left -= n;
		if (c->rx > c->rxmax) sayconn(c), die("TOO MANY BYTES", 6);
	}
}

static void wr(struct conn *c)
{
	for (int k = 0; c->canwrite && !c->shut && k < 16; k++) {
		size_t n = c->txmax - c->tx < CHUNK - 8 ? c->txmax - c->tx : CHUNK - 8;
		if (n == 0) {
			if (shutdown(c->fd, SHUT_WR)) sayconn(c), die("shutdown", 7);
			c->shut = 1;
			return;
		}
		ssize_t m = send(c->fd, pattern(ref, c->out, c->tx, n), n, MSG_NOSIGNAL);
		if (m < 0 && errno == EAGAIN) { c->canwrite = 0; return; }
		if (m < 0) sayconn(c), die("send", 8);
		c->tx += m;
	}
}

// arm asks for EPOLLOUT only while the connection is blocked, as UCX does.
static void arm(int i)
{
	struct conn *c = &conns[i];
	int want = !c->canwrite && !c->shut;
	struct epoll_event ev = { EPOLLIN | EPOLLRDHUP | (want ? EPOLLOUT : 0), { .u64 = 0x1234560000ull + i } };
	if (want == c->armed) return;
	if (epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev)) die("epoll mod", 17);
	c->armed = want;
}

static void setup(char **a, int edge)
{
	int n = atoi(a[4]), port = atoi(a[3]), both = !strcmp(a[1], "both"), one = 1, id, s, l = -1;
	uint64_t tx = strtoull(a[5], 0, 10), rx = strtoull(a[6], 0, 10);
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };
	inet_pton(AF_INET, a[2], &sa.sin_addr);
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (strcmp(a[1], "connect")) {
		l = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(l, (void *)&sa, sizeof sa) || listen(l, 37)) die("listen", 10);
	}
	for (int i = 0; i < n; i++) {
		if (strcmp(a[1], "listen")) {
			s = socket(AF_INET, SOCK_STREAM, 0);
			for (int k = 0; connect(s, (void *)&sa, sizeof sa); k++) {
				if (k > 2000) die("connect", 11);
				nap(2000);
				close(s);
				s = socket(AF_INET, SOCK_STREAM, 0);
			}
			if (send(s, &i, sizeof i, 0) != sizeof i) die("send id", 12);
			add(s, i, 0, tx, rx, edge);
		}
		if (strcmp(a[1], "connect")) {
			s = accept(l, NULL, NULL);
			if (s < 0 || recv(s, &id, sizeof id, MSG_WAITALL) != sizeof id) die("accept", 13);
			add(s, id, 1, both ? rx : tx, both ? tx : rx, edge);
		}
	}
}

int main(int argc, char **a)
{
	if (argc != 10) { errno = EINVAL; die("usage", 64); }
	long rate = atol(a[7]);
	int edge = atoi(a[8]), left, started = 0;
	while (!access(a[9], F_OK)) nap(1000);
	setup(a, edge);
	say("ready\n");
	do {
		struct epoll_event ev[64];
		int busy = 0;
		for (int i = 0; i < nconn; i++)
			busy |= (conns[i].canread && !conns[i].eof) || (conns[i].canwrite && !conns[i].shut) || !started;
		int n = epoll_wait(ep, ev, 64, busy || rate ? 0 : -1);
		if (n < 0 && errno != EINTR) die("epoll_wait", 14);
		for (int i = 0; i < n; i++) {
			uint64_t k = ev[i].data.u64 - 0x1234560000ull;
			if (k >= (uint64_t)nconn) { errno = EINVAL; die("epoll data", 15); }
			if (ev[i].events & (EPOLLERR)) { errno = EIO; sayconn(&conns[k]); die("EPOLLERR", 16); }
			if (ev[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) conns[k].canread = 1;
			if (ev[i].events & EPOLLOUT) conns[k].canwrite = 1;
		}
		left = 0, started = 1;
		for (int i = 0; i < nconn; i++) {
			struct conn *c = &conns[i];
			if (!edge && !c->armed) c->canwrite = 1; // try: level-triggered programs write when they have something
			wr(c);
			rd(c, rate);
			if (!edge) c->canread = 0, arm(i);
			left += !c->eof || !c->shut;
		}
		if (rate) nap(1000);
	} while (left);
	say("done\n");
	_exit(0);
}
