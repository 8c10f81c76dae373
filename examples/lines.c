/* lines N [MICROSECONDS [EVERY]]: every rank prints N numbered lines, each
 * with one write, sleeping MICROSECONDS (default 1000) between them; all meet
 * in a barrier every EVERY lines (default 10). Each line must reach the reader
 * exactly once and in the order of its rank. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const long n = argc > 1 ? atol(argv[1]) : 100;
	const useconds_t pause = argc > 2 ? (useconds_t)atol(argv[2]) : 1000;
	const long every = argc > 3 && atol(argv[3]) > 0 ? atol(argv[3]) : 10;
	int rank, size;

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	for (long i = 0; i < n; i++) {
		printf("rank %d line %ld\n", rank, i);
		if (pause > 0)
			usleep(pause);
		if (i % every == every - 1)
			MPI_Barrier(MPI_COMM_WORLD);
	}
	printf("rank %d done after %ld\n", rank, n);
	MPI_Finalize();
	return 0;
}
