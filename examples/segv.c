/* segv [RANK [SIGNAL]]: rank RANK (default 1, at most the last) dies of a bad
 * pointer, or of SIGNAL, while the others wait for it. */
#include <mpi.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int who = argc > 1 ? atoi(argv[1]) : 1, rank, size;
	const int sig = argc > 2 ? atoi(argv[2]) : SIGSEGV;
	volatile uintptr_t address = 16;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	if (who >= size)
		who = size - 1;
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == who) {
		signal(sig, SIG_DFL);
		if (sig == SIGSEGV)
			*(volatile int *)address = 1;
		raise(sig);
	}
	MPI_Barrier(MPI_COMM_WORLD);
	MPI_Finalize();
	return 0;
}
