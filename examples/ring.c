/* ring STEPS [EVERY [MICROSECONDS]]: a token goes round the ranks; each adds
 * to it. Rank 0 prints the token every EVERY steps (default 1000) and at the
 * end, and sleeps MICROSECONDS before each step (default 0). */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const long steps = argc > 1 ? atol(argv[1]) : 1000;
	const long every = argc > 2 && atol(argv[2]) > 0 ? atol(argv[2]) : 1000;
	const useconds_t pause = argc > 3 ? (useconds_t)atol(argv[3]) : 0;
	double token = 1;
	int rank, size;

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	for (long s = 1; s <= steps; s++) {
		const int next = (rank + 1) % size, prev = (rank + size - 1) % size;

		if (rank == 0) {
			if (pause > 0)
				usleep(pause);
			token = token * 0.999 + 1.0 / (double)s;
			MPI_Send(&token, 1, MPI_DOUBLE, next, 7, MPI_COMM_WORLD);
			MPI_Recv(&token, 1, MPI_DOUBLE, prev, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			if (s % every == 0)
				printf("step %ld token %.15g\n", s, token);
		} else {
			MPI_Recv(&token, 1, MPI_DOUBLE, prev, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			token += 1e-3 * rank;
			MPI_Send(&token, 1, MPI_DOUBLE, next, 7, MPI_COMM_WORLD);
		}
	}
	if (rank == 0)
		printf("final %.15g after %ld steps of %d ranks\n", token, steps, size);
	MPI_Finalize();
	return 0;
}
