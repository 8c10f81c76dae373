/* argv[1] rounds of MPI_Alltoall of argv[2] ints to every rank, then the end. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int rank, size, bad = 0, rounds = argc > 1 ? atoi(argv[1]) : 10, n = argc > 2 ? atoi(argv[2]) : 100000;
	int *out, *in;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	out = malloc(sizeof(int) * n * size);
	in = malloc(sizeof(int) * n * size);
	for (int r = 0; r < rounds; r++) {
		for (int i = 0; i < n * size; i++)
			out[i] = rank * 1000 + r + i;
		MPI_Alltoall(out, n, MPI_INT, in, n, MPI_INT, MPI_COMM_WORLD);
		for (int s = 0; s < size; s++)
			for (int i = 0; i < n; i++)
				if (in[s * n + i] != s * 1000 + r + rank * n + i)
					bad++;
	}
	printf("rank %d bad %d\n", rank, bad);
	fflush(stdout);
	MPI_Finalize();
	return bad != 0;
}
