/* ballast MEGABYTES DIRTY_KB STEPS [EVERY]: every rank holds MEGABYTES of
 * memory that is not zero, and in each step rewrites the next DIRTY_KB of it
 * and takes part in an 8-byte reduction. It is the load under which stall and
 * recovery are measured: how much memory there is, and how fast it changes,
 * are chosen apart from each other. Rank 0 prints a digest every EVERY steps
 * (default: at the end only); the digest depends on the arguments and the
 * number of ranks alone. */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 31) * UINT64_C(0x9e3779b97f4a7c15);
	return x ^ x >> 29;
}

int main(int argc, char **argv)
{
	const size_t words = (size_t)(argc > 1 ? atol(argv[1]) : 64) << 17;
	const size_t dirty = (size_t)(argc > 2 ? atol(argv[2]) : 64) << 7;
	const long steps = argc > 3 ? atol(argv[3]) : 1000;
	const long every = argc > 4 ? atol(argv[4]) : 0;
	uint64_t *memory, sum = 0, all = 0;
	size_t at = 0;
	double start;
	int rank;

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	memory = malloc(words * sizeof *memory);
	if (memory == NULL)
		MPI_Abort(MPI_COMM_WORLD, 2);
	for (size_t i = 0; i < words; i++)
		memory[i] = mix(i * 8 + (uint64_t)rank);
	MPI_Barrier(MPI_COMM_WORLD);
	start = MPI_Wtime();
	for (long s = 1; s <= steps; s++) {
		for (size_t i = 0; i < dirty; i++) {
			memory[at] = mix(memory[at] + all);
			sum += memory[at];
			at = at + 1 < words ? at + 1 : 0;
		}
		MPI_Allreduce(&sum, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
		if (rank == 0 && every > 0 && s % every == 0)
			printf("step %ld digest %016llx\n", s, (unsigned long long)all);
	}
	start = MPI_Wtime() - start;
	for (size_t i = 0; i < words; i++)
		sum = mix(sum + memory[i]);
	MPI_Allreduce(&sum, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0)
		printf("digest %016llx after %ld steps\n# time %.3f s\n", (unsigned long long)all, steps, start);
	MPI_Finalize();
	return 0;
}
