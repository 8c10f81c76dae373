// MPI: every rank sends to its neighbours and all reduce, N steps. Rank 0
// prints a line at the start and a hash at the end.
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAXLEN = 65536 };
static double a[MAXLEN], b[MAXLEN];

int main(int argc, char **argv) {
	MPI_Init(&argc, &argv);
	int rank, size, steps = atoi(argv[1]);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	char *ballast = malloc(16 << 20);
	memset(ballast, rank + 1, 16 << 20);
	double sum = rank + 1, all = 0;
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == 0) { printf("ready\n"); fflush(stdout); }
	for (int s = 0; s < steps; s++) {
		int len = 1 + (s * 7919) % MAXLEN, next = (rank + 1) % size, prev = (rank + size - 1) % size;
		for (int i = 0; i < len; i++) a[i] = sum + i + s;
		MPI_Request rq[2];
		MPI_Irecv(b, len, MPI_DOUBLE, prev, s, MPI_COMM_WORLD, &rq[0]);
		MPI_Isend(a, len, MPI_DOUBLE, next, s, MPI_COMM_WORLD, &rq[1]);
		MPI_Wait(&rq[0], MPI_STATUS_IGNORE);
		MPI_Wait(&rq[1], MPI_STATUS_IGNORE);
		double x = 0;
		for (int i = 0; i < len; i++) x += b[i] * (i % 13 - 6);
		ballast[(s * 4096L) % (16 << 20)]++;
		sum = sum * 0.5 + x / len + ballast[(s * 8192L) % (16 << 20)];
		MPI_Allreduce(&sum, &all, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
		sum += all * 1e-3;
		if (sum > 1e6 || sum < -1e6) sum /= 1e5;
	}
	MPI_Allreduce(&sum, &all, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0) printf("result %.17g\n", all);
	MPI_Finalize();
	return 0;
}
