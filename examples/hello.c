/* hello: every rank says hello. The host is on a "# host" line of its own, so
 * that the rest is the same wherever the job runs. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	char host[MPI_MAX_PROCESSOR_NAME];
	int rank, size, len;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Get_processor_name(host, &len);
	printf("hello from rank %d of %d\n# host %d %s\n", rank, size, rank, host);
	MPI_Finalize();
	return 0;
}
