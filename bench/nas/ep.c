/* EP, "embarrassingly parallel" (RNR-94-007, section 2.2): 2^m pairs of
 * uniform numbers are turned into Gaussian deviates by the polar method; their
 * sums, and how many fall into each square annulus, are the result. Ranks
 * meet only at the end, so this is the compute-bound end of the scale. */
#include "nas.h"

#include <math.h>

/* Pairs are made in batches of 2^16; batch k is made by rank k mod size. */
#define BATCH_LOG2 16
#define ANNULI 10

static const struct { int m; double sx, sy; } classes[] = {
	{ 24, -3.247834652034740e3, -6.958407078382297e3 },
	{ 25, -2.863319731645753e3, -6.320053679109499e3 },
	{ 28, -4.295875165629892e3, -1.580732573678431e4 },
	{ 30, 4.033815542441498e4, -2.660669192809235e4 },
	{ 32, 4.764367927995374e4, -8.084072988043731e4 },
};

/* Adds the pairs of one batch to sum (x, y) and to the counts. */
static void batch(uint64_t number, double sum[2], double count[ANNULI])
{
	const int64_t pairs = INT64_C(1) << BATCH_LOG2;
	uint64_t seed = (UINT64_C(271828183) * nas_power(NAS_A, 2 * (uint64_t)pairs * number)) & NAS_MASK;

	for (int64_t i = 0; i < pairs; i++) {
		double x = 2 * nas_random(&seed, NAS_A) - 1;
		double y = 2 * nas_random(&seed, NAS_A) - 1;
		double t = x * x + y * y;

		if (t > 1)
			continue;
		t = sqrt(-2 * log(t) / t);
		x *= t;
		y *= t;
		count[(int)fmax(fabs(x), fabs(y))] += 1;
		sum[0] += x;
		sum[1] += y;
	}
}

int main(int argc, char **argv)
{
	double mine[2 + ANNULI] = { 0 }, all[2 + ANNULI];
	double start, accepted = 0;
	int64_t batches;
	int c, ok;

	nas_start(&argc, &argv, "EP");
	c = nas_class();
	batches = INT64_C(1) << (classes[c].m - BATCH_LOG2);
	nas_say("pairs 2^%d", classes[c].m);
	MPI_Barrier(MPI_COMM_WORLD);
	start = MPI_Wtime();
	for (int64_t k = nas_rank; k < batches; k += nas_size)
		batch((uint64_t)k, mine, mine + 2);
	MPI_Allreduce(mine, all, 2 + ANNULI, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	start = MPI_Wtime() - start;
	for (int i = 0; i < ANNULI; i++) {
		nas_say("annulus %d %.0f", i, all[2 + i]);
		accepted += all[2 + i];
	}
	nas_say("accepted %.0f", accepted);
	nas_say("sx %.15e", all[0]);
	nas_say("sy %.15e", all[1]);
	ok = nas_error(all[0], classes[c].sx) <= 1e-8 && nas_error(all[1], classes[c].sy) <= 1e-8;
	return nas_finish("ep", ok, start, ldexp(1, classes[c].m + 1) / 1e6);
}
