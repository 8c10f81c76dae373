/* exitcode CODE [RANK [early]]: rank RANK (default 1, at most the last) ends
 * with CODE; the others with 0. With "early" it leaves without MPI_Finalize
 * while the others wait for it in a barrier. */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const int code = argc > 1 ? atoi(argv[1]) : 7;
	const int early = argc > 3 && strcmp(argv[3], "early") == 0;
	int who = argc > 2 ? atoi(argv[2]) : 1, rank, size;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	if (who >= size)
		who = size - 1;
	MPI_Barrier(MPI_COMM_WORLD);
	if (early) {
		if (rank == who)
			_exit(code);
		MPI_Barrier(MPI_COMM_WORLD);
	}
	MPI_Finalize();
	return rank == who ? code : 0;
}
