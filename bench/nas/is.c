/* IS, integer sort (RNR-94-007, section 2.6; NAS-95-020 for the distributed
 * form): ranks of 2^n small integers by bucket sort, ten times. One iteration
 * moves nearly all keys with one Alltoallv, so this is the bandwidth-bound end
 * of the scale, with megabytes in flight at any moment. */
#include "nas.h"

#include <stdlib.h>
#include <string.h>

#define ITERATIONS 10
#define TESTS 5
#define BUCKET_BITS 10

static const struct class {
	int keys_log2, max_log2;
	int64_t index[TESTS], rank[TESTS];
} classes[] = {
	{ 16, 11, { 48427, 17148, 23627, 62548, 4431 }, { 0, 18, 346, 64917, 65463 } },
	{ 20, 16, { 357773, 934767, 875723, 898999, 404505 }, { 1249, 11698, 1039987, 1043896, 1048018 } },
	{ 23, 19, { 2112377, 662041, 5336171, 3642833, 4250760 }, { 104, 17523, 123928, 8288932, 8388264 } },
	{ 25, 21, { 41869, 812306, 5102857, 18232239, 26860214 }, { 33422937, 10244, 59149, 33135281, 99 } },
	{ 27, 23, { 44172927, 72999161, 74326391, 129606274, 21736814 }, { 61147, 882988, 266290, 133997595, 133525895 } },
};

/* The rank that test key j has at iteration i (1..10) of class c. */
static int64_t expected(int c, int j, int i)
{
	const int64_t base = classes[c].rank[j];

	switch (CLASS) {
	case 'W': return j < 2 ? base + (i - 2) : base - i;
	case 'A': return j <= 2 ? base + (i - 1) : base - (i - 1);
	case 'B': return j == 1 || j == 2 || j == 4 ? base + i : base - i;
	default:  return j <= 2 ? base + i : base - i;
	}
}

/* The sorter of one rank. Bucket b holds the keys k with k >> shift == b; rank
 * r gets the buckets [first[r], first[r+1]). */
static struct {
	int64_t n, offset;      /* keys of this rank, and the global index of keys[0] */
	int shift, buckets;
	int32_t *keys, *sorted, *inbox;
	int64_t inbox_size;
	int *first;             /* nas_size + 1 entries */
	int *send, *send_at, *recv, *recv_at;
	int64_t *mine, *total;  /* bucket sizes, here and everywhere */
	int32_t low, high;      /* key range [low, high) of this rank */
	int64_t below;          /* keys less than low */
	int64_t *count;         /* after rank_keys: keys of this rank that are < low+1+i */
	int64_t received;
} s;

static void make_keys(int c)
{
	const int64_t all = INT64_C(1) << classes[c].keys_log2;
	const int32_t quarter = (int32_t)1 << (classes[c].max_log2 - 2);
	uint64_t seed;

	s.offset = all * nas_rank / nas_size;
	s.n = all * (nas_rank + 1) / nas_size - s.offset;
	s.keys = nas_alloc((size_t)s.n, sizeof *s.keys);
	s.sorted = nas_alloc((size_t)s.n, sizeof *s.sorted);
	seed = (UINT64_C(314159265) * nas_power(NAS_A, 4 * (uint64_t)s.offset)) & NAS_MASK;
	for (int64_t i = 0; i < s.n; i++) {
		double x = nas_random(&seed, NAS_A);

		x += nas_random(&seed, NAS_A);
		x += nas_random(&seed, NAS_A);
		x += nas_random(&seed, NAS_A);
		s.keys[i] = (int32_t)(quarter * x);
	}
}

static void set_up(int c)
{
	const int bits = classes[c].max_log2 < BUCKET_BITS ? classes[c].max_log2 : BUCKET_BITS;
	const size_t ranks = (size_t)nas_size;

	s.buckets = 1 << bits;
	s.shift = classes[c].max_log2 - bits;
	s.first = nas_alloc(ranks + 1, sizeof *s.first);
	s.send = nas_alloc(ranks, sizeof *s.send);
	s.send_at = nas_alloc(ranks, sizeof *s.send_at);
	s.recv = nas_alloc(ranks, sizeof *s.recv);
	s.recv_at = nas_alloc(ranks, sizeof *s.recv_at);
	s.mine = nas_alloc((size_t)s.buckets, sizeof *s.mine);
	s.total = nas_alloc((size_t)s.buckets, sizeof *s.total);
	s.count = nas_alloc((size_t)1 << classes[c].max_log2, sizeof *s.count);
	make_keys(c);
}

static void set_key(int64_t index, int32_t value)
{
	if (index >= s.offset && index < s.offset + s.n)
		s.keys[index - s.offset] = value;
}

/* Fetches the keys at the test indices to every rank. */
static void fetch_tests(int c, int32_t value[TESTS])
{
	int32_t mine[TESTS];

	for (int j = 0; j < TESTS; j++) {
		int64_t at = classes[c].index[j] - s.offset;

		mine[j] = at >= 0 && at < s.n ? s.keys[at] : 0;
	}
	MPI_Allreduce(mine, value, TESTS, MPI_INT32_T, MPI_SUM, MPI_COMM_WORLD);
}

/* Sorts the keys of this rank into buckets and agrees who gets which. */
static void fill_buckets(int64_t all)
{
	int64_t seen = 0, *at;
	int owner = 0;

	memset(s.mine, 0, (size_t)s.buckets * sizeof *s.mine);
	for (int64_t i = 0; i < s.n; i++)
		s.mine[s.keys[i] >> s.shift]++;
	MPI_Allreduce(s.mine, s.total, s.buckets, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
	for (int b = 0; b < s.buckets; b++) {
		/* The next owner starts where the previous ones have their share. */
		while (owner < nas_size && seen >= all * owner / nas_size)
			s.first[owner++] = b;
		seen += s.total[b];
	}
	for (; owner <= nas_size; owner++)
		s.first[owner] = s.buckets;
	at = nas_alloc((size_t)s.buckets, sizeof *at);
	for (int b = 1; b < s.buckets; b++)
		at[b] = at[b - 1] + s.mine[b - 1];
	for (int64_t i = 0; i < s.n; i++)
		s.sorted[at[s.keys[i] >> s.shift]++] = s.keys[i];
	free(at);
}

/* Sends every key to the owner of its bucket. */
static void exchange(void)
{
	int64_t in = 0, out = 0;

	for (int r = 0; r < nas_size; r++) {
		int64_t n = 0;

		for (int b = s.first[r]; b < s.first[r + 1]; b++)
			n += s.mine[b];
		s.send[r] = (int)n;
		s.send_at[r] = (int)out;
		out += n;
	}
	MPI_Alltoall(s.send, 1, MPI_INT, s.recv, 1, MPI_INT, MPI_COMM_WORLD);
	for (int r = 0; r < nas_size; r++) {
		s.recv_at[r] = (int)in;
		in += s.recv[r];
	}
	if (in > s.inbox_size) {
		free(s.inbox);
		s.inbox_size = in + in / 8;
		s.inbox = nas_alloc((size_t)s.inbox_size, sizeof *s.inbox);
	}
	MPI_Alltoallv(s.sorted, s.send, s.send_at, MPI_INT32_T,
		      s.inbox, s.recv, s.recv_at, MPI_INT32_T, MPI_COMM_WORLD);
	s.received = in;
}

static void rank_keys(int64_t all)
{
	fill_buckets(all);
	exchange();
	s.low = (int32_t)s.first[nas_rank] << s.shift;
	s.high = (int32_t)s.first[nas_rank + 1] << s.shift;
	s.below = 0;
	for (int b = 0; b < s.first[nas_rank]; b++)
		s.below += s.total[b];
	if (s.high > s.low)
		memset(s.count, 0, (size_t)(s.high - s.low) * sizeof *s.count);
	for (int64_t i = 0; i < s.received; i++)
		s.count[s.inbox[i] - s.low]++;
	for (int32_t k = 1; k < s.high - s.low; k++)
		s.count[k] += s.count[k - 1];
}

/* Looks the ranks of the test keys up; returns how many are right. */
static int check_tests(int c, int iteration, const int32_t value[TESTS])
{
	int64_t mine[TESTS] = { 0 }, rank[TESTS];
	int right = 0;

	for (int j = 0; j < TESTS; j++) {
		int32_t k = value[j];

		if (k >= s.low && k < s.high)
			mine[j] = s.below + (k > s.low ? s.count[k - s.low - 1] : 0);
	}
	MPI_Allreduce(mine, rank, TESTS, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
	for (int j = 0; j < TESTS; j++)
		right += rank[j] == expected(c, j, iteration);
	nas_say("iteration %d ranks %lld %lld %lld %lld %lld", iteration,
		(long long)rank[0], (long long)rank[1], (long long)rank[2],
		(long long)rank[3], (long long)rank[4]);
	return right;
}

/* Writes the keys out in order and looks for inversions, also between ranks.
 * Returns how many there are; *sum becomes a checksum of the sorted sequence. */
static int64_t full_sort(uint64_t *sum)
{
	int64_t bad = 0, all_bad = 0, at = 0;
	int32_t last = -1, before = -1, largest;
	uint64_t mine = 0;

	free(s.sorted);
	s.sorted = nas_alloc((size_t)s.received, sizeof *s.sorted);
	for (int32_t k = s.low; k < s.high; k++)
		for (; at < s.count[k - s.low]; at++)
			s.sorted[at] = k;
	for (int64_t i = 0; i < s.received; i++) {
		bad += s.sorted[i] < last;
		last = s.sorted[i];
		mine += (uint64_t)(s.below + i + 1) * (uint64_t)(last + 1);
	}
	largest = last;
	MPI_Exscan(&largest, &before, 1, MPI_INT32_T, MPI_MAX, MPI_COMM_WORLD);
	if (nas_rank > 0 && s.received > 0 && before > s.sorted[0])
		bad++;
	bad += at != s.received;
	MPI_Allreduce(&bad, &all_bad, 1, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
	MPI_Allreduce(&mine, sum, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
	return all_bad;
}

int main(int argc, char **argv)
{
	int32_t value[TESTS];
	double start;
	uint64_t sum;
	int64_t all, bad;
	int c, right = 0;

	nas_start(&argc, &argv, "IS");
	c = nas_class();
	all = INT64_C(1) << classes[c].keys_log2;
	nas_say("keys 2^%d, below 2^%d", classes[c].keys_log2, classes[c].max_log2);
	set_up(c);
	MPI_Barrier(MPI_COMM_WORLD);
	start = MPI_Wtime();
	for (int i = 1; i <= ITERATIONS; i++) {
		set_key(i, i);
		set_key(i + ITERATIONS, ((int32_t)1 << classes[c].max_log2) - i);
		fetch_tests(c, value);
		rank_keys(all);
		right += check_tests(c, i, value);
	}
	start = MPI_Wtime() - start;
	bad = full_sort(&sum);
	nas_say("right %d of %d, inversions %lld", right, TESTS * ITERATIONS, (long long)bad);
	nas_say("checksum %016llx", (unsigned long long)sum);
	return nas_finish("is", right == TESTS * ITERATIONS && bad == 0, start,
			  (double)all * ITERATIONS / 1e6);
}
