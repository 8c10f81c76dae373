/* What the four NAS kernels of lampause share.
 *
 * The kernels follow the algorithm descriptions of the NASA reports
 * RNR-94-007 ("The NAS Parallel Benchmarks") and NAS-95-020 (NPB 2.0). The
 * class is chosen when they are compiled, with -DCLASS=\'S\' ... \'C\'.
 *
 * Output: rank 0 only, one line per write. Everything that depends on the
 * clock stands on lines that start with "# time", so that two runs on the same
 * number of ranks print the same bytes once those lines are removed.
 */
#ifndef LAM_NAS_H
#define LAM_NAS_H

#include <mpi.h>
#include <stddef.h>
#include <stdint.h>

#ifndef CLASS
#define CLASS 'S'
#endif

/* The multiplier a = 5^13 of x(k+1) = a x(k) mod 2^46. */
#define NAS_A UINT64_C(1220703125)
#define NAS_MASK ((UINT64_C(1) << 46) - 1)

/* Steps the generator and returns the new number, scaled to (0,1). */
static inline double nas_random(uint64_t *x, uint64_t a)
{
	*x = (*x * a) & NAS_MASK;
	return (double)*x * 0x1p-46;
}

/* Returns a^n mod 2^46. */
uint64_t nas_power(uint64_t a, uint64_t n);

/* Index of CLASS in "SWABC". */
int nas_class(void);

/* nas_start calls MPI_Init and prints the head line. */
void nas_start(int *argc, char ***argv, const char *kernel);

extern int nas_rank, nas_size;

/* Rank 0 prints one line (no newline in the format); others do nothing. */
void nas_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Ends the job with a message when the number of ranks does not suit. */
void nas_need_power_of_two(void);
void nas_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* malloc that ends the job when there is no memory. count*size must not
 * overflow; the caller frees. */
void *nas_alloc(size_t count, size_t size);

/* Relative error of got against want. */
double nas_error(double got, double want);

/* Prints the verdict, time and rate, calls MPI_Finalize and returns the exit
 * status: 0 if ok. seconds is this rank's time; the longest counts. */
int nas_finish(const char *kernel, int ok, double seconds, double mops);

#endif
