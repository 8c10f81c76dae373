/* abort CODE [RANK]: rank RANK (default 1, at most the last) calls MPI_Abort
 * with CODE (default 9) while the others wait for it. */
#include <mpi.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	const int code = argc > 1 ? atoi(argv[1]) : 9;
	int who = argc > 2 ? atoi(argv[2]) : 1, rank, size;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	if (who >= size)
		who = size - 1;
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == who)
		MPI_Abort(MPI_COMM_WORLD, code);
	MPI_Barrier(MPI_COMM_WORLD);
	MPI_Finalize();
	return 0;
}
