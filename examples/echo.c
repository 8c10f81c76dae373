/* echo [MICROSECONDS]: rank 0 reads stdin line by line and broadcasts each
 * line; the last rank prints it with its number. At the end both print how
 * many bytes they saw and their FNV-1a hash, which must agree. */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LINE 65536

static uint64_t hash = UINT64_C(14695981039346656037);
static long bytes;

static void take(const char *p, int n)
{
	for (int i = 0; i < n; i++)
		hash = (hash ^ (unsigned char)p[i]) * UINT64_C(1099511628211);
	bytes += n;
}

int main(int argc, char **argv)
{
	static char line[LINE];
	const useconds_t pause = argc > 1 ? (useconds_t)atol(argv[1]) : 0;
	long number = 0;
	uint64_t last;
	int rank, size, n = 0;

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	do {
		if (rank == 0)
			for (n = 0; n < LINE; ) {
				int c = getchar();

				if (c == EOF)
					break;
				line[n++] = (char)c;
				if (c == '\n')
					break;
			}
		MPI_Bcast(&n, 1, MPI_INT, 0, MPI_COMM_WORLD);
		MPI_Bcast(line, n, MPI_CHAR, 0, MPI_COMM_WORLD);
		take(line, n);
		number += n > 0;
		if (n > 0 && rank == size - 1)
			printf("%ld: %.*s", number, n, line);
		if (pause > 0)
			usleep(pause);
	} while (n > 0);
	MPI_Reduce(&hash, &last, 1, MPI_UINT64_T, MPI_MAX, 0, MPI_COMM_WORLD);
	if (rank == 0)
		printf("read %ld lines, %ld bytes, hash %016llx %s\n", number, bytes,
		       (unsigned long long)hash, last == hash ? "everywhere" : "DIFFERS");
	MPI_Finalize();
	return rank == 0 && last != hash;
}
