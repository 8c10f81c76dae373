/* Rank 0 goes to MPI_Finalize at once, the others argv[1] seconds later. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	int rank;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank != 0) {
		double end = MPI_Wtime() + atof(argv[1]);

		while (MPI_Wtime() < end)
			;
	}
	printf("rank %d: finalize\n", rank);
	fflush(stdout);
	MPI_Finalize();
	return 0;
}
