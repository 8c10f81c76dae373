/* pairs [-n STEPS] [-k EVERY] [-m MAXBYTES] [-s SEED] [-u MICROSECONDS]
 *
 * Byte-sequence checker of every pair of ranks. In each step every rank sends
 * every other rank one message of 1 to MAXBYTES (default 8 MB) bytes; sizes
 * and contents follow from (seed, sender, receiver, sequence number) alone, so
 * that one byte lost, doubled or moved on any connection is found and named.
 * The way of receiving changes from step to step: wildcard probes, receives
 * posted in advance, one non-blocking receive for anything, synchronous sends.
 * Sends stay open for two steps and a non-blocking reduction spans each step,
 * so there is traffic in flight at any moment; blocking collectives follow.
 *
 * Rank 0 prints a line with a hash of all that was received every EVERY steps
 * (default 100) and at the end. The output depends on nothing but the
 * arguments and the number of ranks. A mismatch ends the job with status 3. */
#include <getopt.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPEN_STEPS 2                     /* how long a send stays open */
#define WORDS 512                        /* of the reductions */

static int rank, size;
static long steps = 1000, every = 100, pause_us;
static int64_t max_bytes = 8 << 20;
static uint64_t seed = 1;

/* What is open or expected with one peer. */
static struct peer {
	long next;                       /* sequence number of the next message from it */
	uint64_t hash;                   /* of all messages from it */
	unsigned char *out[OPEN_STEPS];
	MPI_Request sent[OPEN_STEPS];
	unsigned char *in;               /* for receives posted in advance */
} *peers;
static unsigned char *inbox;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= UINT64_C(0x9e3779b97f4a7c15);
	x ^= x >> 29;
	x *= UINT64_C(0xd6e8feb86659fd93);
	return x ^ x >> 32;
}

static uint64_t key(int from, int to, long sequence)
{
	return mix(mix(mix(seed + 0x51) + (uint64_t)from * 65537 + (uint64_t)to + 1) + (uint64_t)sequence);
}

/* Sizes are spread evenly over the powers of two, with odd remainders. */
static int64_t length(int from, int to, long sequence)
{
	const uint64_t k = key(from, to, sequence);
	int bits = 0;
	int64_t n;

	while ((INT64_C(1) << bits) < max_bytes)
		bits++;
	n = INT64_C(1) << (k % (uint64_t)(bits + 1));
	if ((k >> 20 & 3) != 0)
		n += (int64_t)((k >> 24) % (uint64_t)n);
	return n > max_bytes ? max_bytes : n;
}

static void fill(unsigned char *p, int64_t n, uint64_t k)
{
	uint64_t word;
	int64_t i;

	for (i = 0; i + 8 <= n; i += 8) {
		word = (k + (uint64_t)i) * UINT64_C(0x9e3779b97f4a7c15);
		word ^= word >> 29;
		memcpy(p + i, &word, 8);
	}
	word = mix(k + (uint64_t)i);
	memcpy(p + i, &word, (size_t)(n - i));
}

static int same(const unsigned char *p, int64_t n, uint64_t k, int64_t *bad)
{
	uint64_t word, have;
	int64_t i;

	for (i = 0; i + 8 <= n; i += 8) {
		word = (k + (uint64_t)i) * UINT64_C(0x9e3779b97f4a7c15);
		word ^= word >> 29;
		memcpy(&have, p + i, 8);
		if (have != word) {
			*bad = i;
			return 0;
		}
	}
	word = mix(k + (uint64_t)i);
	*bad = i;
	return memcmp(p + i, &word, (size_t)(n - i)) == 0;
}

static void wrong(const char *what, int from, long sequence, int64_t detail)
{
	fprintf(stderr, "BAD rank %d from %d message %ld: %s (%lld)\n", rank, from, sequence, what, (long long)detail);
	fflush(stderr);
	MPI_Abort(MPI_COMM_WORLD, 3);
	_exit(3);
}

/* Checks a received message and counts it. */
static void accept_message(int from, const unsigned char *p, int64_t n)
{
	struct peer *peer = &peers[from];
	const long q = peer->next;
	const uint64_t k = key(from, rank, q);
	int64_t bad;

	if (n != length(from, rank, q) || !same(p, n, k, &bad)) {
		for (long other = q > 8 ? q - 8 : 0; other < q + 8; other++)
			if (n == length(from, rank, other) && same(p, n, key(from, rank, other), &bad))
				wrong("another message of the sequence came, number", from, q, other);
		if (n != length(from, rank, q))
			wrong("length", from, q, n);
		same(p, n, k, &bad);
		wrong("content differs at byte", from, q, bad);
	}
	peer->hash = mix(peer->hash + k);
	peer->next++;
}

static void send_all(long step)
{
	const int slot = (int)(step % OPEN_STEPS);

	for (int d = 1; d < size; d++) {
		const int to = (rank + d) % size;
		struct peer *peer = &peers[to];
		const int64_t n = length(rank, to, step);

		MPI_Wait(&peer->sent[slot], MPI_STATUS_IGNORE);
		free(peer->out[slot]);
		peer->out[slot] = malloc((size_t)n);
		if (peer->out[slot] == NULL)
			wrong("no memory for bytes", to, step, n);
		fill(peer->out[slot], n, key(rank, to, step));
		if (step % 4 == 3)
			MPI_Issend(peer->out[slot], (int)n, MPI_BYTE, to, (int)(step % 5), MPI_COMM_WORLD, &peer->sent[slot]);
		else
			MPI_Isend(peer->out[slot], (int)n, MPI_BYTE, to, (int)(step % 5), MPI_COMM_WORLD, &peer->sent[slot]);
	}
}

/* How many peers have not sent their message of this step yet. */
static int missing(long step)
{
	int n = 0;

	for (int p = 0; p < size; p++)
		n += p != rank && peers[p].next <= step;
	return n;
}

/* A message of the next step may overtake another peer's of this one; it is
 * accepted all the same and not expected again. */
static void receive_by_probe(long step)
{
	while (missing(step) > 0) {
		MPI_Status st;
		int n;

		MPI_Probe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &st);
		MPI_Get_count(&st, MPI_BYTE, &n);
		if (n > max_bytes)
			wrong("length beyond the limit", st.MPI_SOURCE, peers[st.MPI_SOURCE].next, n);
		MPI_Recv(inbox, n, MPI_BYTE, st.MPI_SOURCE, st.MPI_TAG, MPI_COMM_WORLD, &st);
		accept_message(st.MPI_SOURCE, inbox, n);
	}
}

static void receive_posted(long step)
{
	MPI_Request *open = malloc((size_t)size * sizeof *open);

	for (int p = 0; p < size; p++) {
		open[p] = MPI_REQUEST_NULL;
		if (p != rank && peers[p].next <= step)
			MPI_Irecv(peers[p].in, (int)max_bytes, MPI_BYTE, p, MPI_ANY_TAG, MPI_COMM_WORLD, &open[p]);
	}
	for (;;) {
		MPI_Status st;
		int which, n;

		MPI_Waitany(size, open, &which, &st);
		if (which == MPI_UNDEFINED)
			break;
		MPI_Get_count(&st, MPI_BYTE, &n);
		accept_message(st.MPI_SOURCE, peers[st.MPI_SOURCE].in, n);
	}
	free(open);
}

static void receive_anything(long step)
{
	while (missing(step) > 0) {
		MPI_Request r;
		MPI_Status st;
		int n, done = 0;

		MPI_Irecv(inbox, (int)max_bytes, MPI_BYTE, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &r);
		while (!done)
			MPI_Test(&r, &done, &st);
		MPI_Get_count(&st, MPI_BYTE, &n);
		accept_message(st.MPI_SOURCE, inbox, n);
	}
}

/* Collectives with results that every rank can compute by itself. */
static void collectives(long step, MPI_Comm comm, int *tables)
{
	const int root = (int)(step % size), n = 1 + (int)(mix((uint64_t)step) % 1000);
	int *out = tables, *in = tables + size;
	unsigned char block[1000 + 8];
	int64_t bad;

	for (int p = 0; p < size; p++)
		out[p] = rank * 1000 + p + (int)step;
	MPI_Alltoall(out, 1, MPI_INT, in, 1, MPI_INT, comm);
	for (int p = 0; p < size; p++)
		if (in[p] != p * 1000 + rank + (int)step)
			wrong("alltoall", p, step, in[p]);
	if (rank == root)
		fill(block, n, key(root, root, step));
	MPI_Bcast(block, n, MPI_BYTE, root, comm);
	if (!same(block, n, key(root, root, step), &bad))
		wrong("bcast differs at byte", root, step, bad);
}

/* One hash over everything that any rank received. */
static uint64_t total_hash(void)
{
	uint64_t mine = 0, all;

	for (int p = 0; p < size; p++)
		mine += mix(peers[p].hash + (uint64_t)p * 31 + (uint64_t)rank);
	MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
	return all;
}

static void set_up(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "n:k:m:s:u:")) != -1)
		switch (c) {
		case 'n': steps = atol(optarg); break;
		case 'k': every = atol(optarg); break;
		case 'm': max_bytes = atoll(optarg); break;
		case 's': seed = strtoull(optarg, NULL, 10); break;
		case 'u': pause_us = atol(optarg); break;
		default: MPI_Abort(MPI_COMM_WORLD, 64);
		}
	if (every < 1)
		every = 1;
	if (max_bytes < 1 || max_bytes > INT32_MAX)
		max_bytes = 8 << 20;
	peers = calloc((size_t)size, sizeof *peers);
	inbox = malloc((size_t)max_bytes);
	for (int p = 0; p < size; p++) {
		peers[p].in = malloc((size_t)max_bytes);
		for (int i = 0; i < OPEN_STEPS; i++)
			peers[p].sent[i] = MPI_REQUEST_NULL;
	}
}

int main(int argc, char **argv)
{
	static int64_t out[WORDS], in[WORDS];
	MPI_Comm collective;
	int *tables;

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Comm_dup(MPI_COMM_WORLD, &collective);
	set_up(argc, argv);
	tables = calloc(2 * (size_t)size, sizeof *tables);
	if (rank == 0)
		printf("pairs of %d ranks, %ld steps, up to %lld bytes\n", size, steps, (long long)max_bytes);
	for (long s = 0; s < steps; s++) {
		MPI_Request reduction;

		for (int i = 0; i < WORDS; i++)
			out[i] = (int64_t)s * i + rank;
		MPI_Iallreduce(out, in, WORDS, MPI_INT64_T, MPI_SUM, collective, &reduction);
		send_all(s);
		switch (s % 4) {
		case 1: receive_posted(s); break;
		case 2: receive_anything(s); break;
		default: receive_by_probe(s);
		}
		MPI_Wait(&reduction, MPI_STATUS_IGNORE);
		for (int i = 0; i < WORDS; i++)
			if (in[i] != (int64_t)s * i * size + (int64_t)size * (size - 1) / 2)
				wrong("iallreduce", i, s, in[i]);
		if (s % 8 == 7)
			collectives(s, collective, tables);
		if ((s + 1) % every == 0) {
			uint64_t h = total_hash();

			if (rank == 0)
				printf("step %ld hash %016llx\n", s + 1, (unsigned long long)h);
		}
		if (pause_us > 0)
			usleep((useconds_t)pause_us);
	}
	for (int p = 0; p < size; p++)
		for (int i = 0; i < OPEN_STEPS; i++)
			MPI_Wait(&peers[p].sent[i], MPI_STATUS_IGNORE);
	uint64_t h = total_hash();
	if (rank == 0)
		printf("pairs ok steps %ld hash %016llx\n", steps, (unsigned long long)h);
	MPI_Comm_free(&collective);
	MPI_Finalize();
	return 0;
}
