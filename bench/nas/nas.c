#include "nas.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int nas_rank, nas_size;

uint64_t nas_power(uint64_t a, uint64_t n)
{
	uint64_t result = 1;

	for (; n > 0; n >>= 1) {
		if (n & 1)
			result = (result * a) & NAS_MASK;
		a = (a * a) & NAS_MASK;
	}
	return result;
}

int nas_class(void)
{
	const char *classes = "SWABC", *at = strchr(classes, CLASS);

	if (at == NULL)
		nas_fail("class %c: not one of %s", CLASS, classes);
	return (int)(at - classes);
}

void nas_start(int *argc, char ***argv, const char *kernel)
{
	/* A line is written at once, so that progress is seen through a pipe. */
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	MPI_Init(argc, argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &nas_rank);
	MPI_Comm_size(MPI_COMM_WORLD, &nas_size);
	nas_say("NAS %s class %c, %d ranks", kernel, CLASS, nas_size);
}

void nas_say(const char *format, ...)
{
	char line[512];
	va_list args;

	if (nas_rank != 0)
		return;
	va_start(args, format);
	vsnprintf(line, sizeof line, format, args);
	va_end(args);
	puts(line);
}

void nas_fail(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "rank %d: ", nas_rank);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	MPI_Abort(MPI_COMM_WORLD, 2);
	exit(2);
}

void nas_need_power_of_two(void)
{
	if ((nas_size & (nas_size - 1)) != 0)
		nas_fail("%d ranks: not a power of two", nas_size);
}

void *nas_alloc(size_t count, size_t size)
{
	void *p = calloc(count > 0 ? count : 1, size);

	if (p == NULL)
		nas_fail("no memory for %zu elements of %zu bytes", count, size);
	return p;
}

double nas_error(double got, double want)
{
	return fabs((got - want) / want);
}

int nas_finish(const char *kernel, int ok, double seconds, double mops)
{
	double longest = 0;

	MPI_Reduce(&seconds, &longest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
	MPI_Bcast(&ok, 1, MPI_INT, 0, MPI_COMM_WORLD);
	nas_say("%s.%c VERIFICATION %s", kernel, CLASS, ok ? "SUCCESSFUL" : "FAILED");
	nas_say("# time %.3f s", longest);
	nas_say("# time %.2f Mop/s", longest > 0 ? mops / longest : 0);
	MPI_Finalize();
	return ok ? 0 : 1;
}
