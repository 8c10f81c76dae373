/* Rank 0 copies stdin to stdout; all ranks meet afterwards. */
#include <mpi.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int rank;
	char b[8192];
	ssize_t n;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	if (rank == 0)
		while ((n = read(0, b, sizeof b)) > 0)
			for (ssize_t o = 0, w; o < n; o += w)
				if ((w = write(1, b + o, n - o)) < 0)
					return 3;
	MPI_Barrier(MPI_COMM_WORLD);
	MPI_Finalize();
	return 0;
}
