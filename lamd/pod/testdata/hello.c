/* Prints rank, size, pid and hostname; exits with argv[1] on rank 1. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int rank, size, sum;
	char host[256] = "";

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	gethostname(host, sizeof host);
	printf("rank %d of %d sum %d pid %d host %s uid %d\n", rank, size, sum, (int)getpid(), host, (int)getuid());
	fprintf(stderr, "err %d\n", rank);
	MPI_Finalize();
	return argc > 1 && rank == 1 ? atoi(argv[1]) : 0;
}
