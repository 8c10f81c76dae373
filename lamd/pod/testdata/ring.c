/*
 * A ring with checked contents: argv[1] steps of argv[2] doubles; rank 0
 * prints a running sum every argv[3] steps and sleeps argv[4] microseconds per
 * step. Every rank checks what it gets.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int rank, size, bad = 0;
	long steps = argc > 1 ? atol(argv[1]) : 1000;
	int n = argc > 2 ? atoi(argv[2]) : 1000;
	long every = argc > 3 ? atol(argv[3]) : 100;
	long nap = argc > 4 ? atol(argv[4]) : 0;
	double sum = 0, *out, *in;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	out = malloc(n * sizeof *out);
	in = malloc(n * sizeof *in);
	for (long s = 0; s < steps; s++) {
		int left = (rank + size - 1) % size, right = (rank + 1) % size;
		double x, all;

		for (int i = 0; i < n; i++)
			out[i] = rank * 1e6 + s + i * 0.5;
		MPI_Sendrecv(out, n, MPI_DOUBLE, right, 1, in, n, MPI_DOUBLE, left, 1,
			     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		for (int i = 0; i < n; i++)
			if (in[i] != left * 1e6 + s + i * 0.5)
				bad++;
		x = in[s % n];
		MPI_Allreduce(&x, &all, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
		sum += all;
		if (rank == 0 && s % every == 0) {
			printf("step %ld sum %.17g\n", s, sum);
			fflush(stdout);
		}
		if (rank == 0 && nap)
			usleep(nap);
	}
	MPI_Allreduce(MPI_IN_PLACE, &bad, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0)
		printf("done %ld sum %.17g bad %d\n", steps, sum, bad);
	MPI_Finalize();
	return bad != 0;
}
