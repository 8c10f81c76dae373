/* CG, conjugate gradient (RNR-94-007, section 2.4; NAS-95-020 for the
 * distribution): the smallest eigenvalue of a large sparse matrix with a
 * random pattern, by inverse power iteration. Many small reductions and one
 * long exchange per step: the latency-bound end of the scale.
 *
 * Process (i, j) of a rows x cols mesh (cols = rows or 2 rows) holds block
 * (i, j) of the matrix and block j of every vector. A matrix product is a
 * local product, a sum along the mesh row, and a transposition. */
#include "nas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RCOND 0.1
#define INNER 25

static const struct { int64_t n; int nonzer, niter; double shift, zeta; } classes[] = {
	{ 1400, 7, 15, 10, 8.5971775078648 },
	{ 7000, 8, 15, 12, 10.362595087124 },
	{ 14000, 11, 15, 20, 17.130235054029 },
	{ 75000, 13, 75, 60, 22.712745482631 },
	{ 150000, 15, 75, 110, 28.973605592845 },
};

static int rows, cols, row, col;
static MPI_Comm along_row;               /* the processes (row, *) */
static int64_t n, row_lo, row_n, col_lo, col_n;

static int64_t col_bound(int64_t j) { return n * j / cols; }
static int64_t row_bound(int64_t i) { return n * i / rows; }

static void lay_out(void)
{
	rows = 1;
	while (4 * rows * rows <= nas_size)
		rows *= 2;
	cols = nas_size / rows;
	row = nas_rank / cols;
	col = nas_rank % cols;
	row_lo = row_bound(row);
	row_n = row_bound(row + 1) - row_lo;
	col_lo = col_bound(col);
	col_n = col_bound(col + 1) - col_lo;
	MPI_Comm_split(MPI_COMM_WORLD, row, col, &along_row);
}

/* The local block in compressed rows: the entries of local row i are
 * [start[i], start[i+1]). */
static int64_t *start;
static int32_t *column;
static double *value;

struct entry { int32_t row, column; double value; };
static struct { struct entry *at; int64_t n, room; } heap;

/* Remembers A(r, c) += v if the entry is in this process's block. */
static void add(int64_t r, int64_t c, double v)
{
	if (r < row_lo || r >= row_lo + row_n || c < col_lo || c >= col_lo + col_n)
		return;
	if (heap.n == heap.room) {
		heap.room = heap.room * 2 + 4096;
		heap.at = realloc(heap.at, (size_t)heap.room * sizeof *heap.at);
		if (heap.at == NULL)
			nas_fail("no memory for %lld matrix entries", (long long)heap.room);
	}
	heap.at[heap.n++] = (struct entry){ (int32_t)(r - row_lo), (int32_t)(c - col_lo), v };
}

/* Makes a sparse random vector of nonzer entries, and entry `own` = 0.5;
 * returns the number of entries. marked[] is all 0 before and after. */
static int sparse_vector(uint64_t *seed, int nonzer, int64_t own, double *v, int64_t *at, char *marked)
{
	int64_t power = 1;
	int k = 0, found = 0;

	while (power < n)
		power *= 2;
	while (k < nonzer) {
		double x = nas_random(seed, NAS_A);
		int64_t i = (int64_t)((double)power * nas_random(seed, NAS_A));

		if (i >= n || marked[i])
			continue;
		marked[i] = 1;
		v[k] = x;
		at[k++] = i;
	}
	for (int i = 0; i < k; i++) {
		marked[at[i]] = 0;
		if (at[i] == own) {
			v[i] = 0.5;
			found = 1;
		}
	}
	if (!found) {
		v[k] = 0.5;
		at[k++] = own;
	}
	return k;
}

/* Sums the entries of equal place and packs them into start, column, value. */
static void compress(void)
{
	int64_t *end = nas_alloc((size_t)row_n + 1, sizeof *end);
	int64_t *place = nas_alloc((size_t)col_n, sizeof *place);  /* 1 + where a column of this row is */
	int64_t *order = nas_alloc((size_t)heap.n, sizeof *order), packed = 0;

	start = nas_alloc((size_t)row_n + 1, sizeof *start);
	column = nas_alloc((size_t)heap.n, sizeof *column);
	value = nas_alloc((size_t)heap.n, sizeof *value);
	for (int64_t i = 0; i < heap.n; i++)
		end[heap.at[i].row + 1]++;
	for (int64_t i = 0; i < row_n; i++)
		end[i + 1] += end[i];
	for (int64_t i = 0; i < heap.n; i++)
		order[end[heap.at[i].row]++] = i;
	for (int64_t i = 0, r = 0; r < row_n; r++) {
		start[r] = packed;
		for (; i < end[r]; i++) {
			const struct entry *e = &heap.at[order[i]];

			if (place[e->column] <= start[r]) {
				column[packed] = e->column;
				place[e->column] = ++packed;
			}
			value[place[e->column] - 1] += e->value;
		}
	}
	start[row_n] = packed;
	free(order);
	free(place);
	free(end);
	free(heap.at);
}

/* A = sum over i of w(i) x(i) x(i)', w falling geometrically from 1 to RCOND,
 * plus (RCOND - shift) on the diagonal. Every process draws all vectors. */
static void make_matrix(int nonzer, double shift)
{
	const double ratio = pow(RCOND, 1.0 / (double)n);
	double weight = 1, v[32];
	int64_t at[32];
	char *marked = nas_alloc((size_t)n, 1);
	uint64_t seed = 314159265;

	nas_random(&seed, NAS_A);
	for (int64_t i = 0; i < n; i++) {
		int k = sparse_vector(&seed, nonzer, i, v, at, marked);

		for (int a = 0; a < k; a++)
			for (int b = 0; b < k; b++)
				add(at[b], at[a], weight * v[a] * v[b]);
		add(i, i, RCOND - shift);
		weight *= ratio;
	}
	free(marked);
	compress();
}

static double *partial, *whole;          /* row_n each: scratch of multiply */

/* y = A x, both in column blocks. */
static void multiply(const double *x, double *y)
{
	const int ratio = cols / rows;
	const int half = col % ratio;        /* which part of the row block goes on */
	const int other = (col / ratio) * cols + ratio * row + half;
	const int64_t lo = col_bound((int64_t)ratio * row + half) - row_lo;
	const int64_t len = col_bound((int64_t)ratio * row + half + 1) - row_lo - lo;

	for (int64_t i = 0; i < row_n; i++) {
		double sum = 0;

		for (int64_t k = start[i]; k < start[i + 1]; k++)
			sum += value[k] * x[column[k]];
		partial[i] = sum;
	}
	MPI_Allreduce(partial, whole, (int)row_n, MPI_DOUBLE, MPI_SUM, along_row);
	if (other == nas_rank) {
		memcpy(y, whole + lo, (size_t)len * sizeof *y);
		return;
	}
	MPI_Sendrecv(whole + lo, (int)len, MPI_DOUBLE, other, 1, y, (int)col_n, MPI_DOUBLE, other, 1,
		     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

static double dot(const double *x, const double *y)
{
	double mine = 0, all;

	for (int64_t i = 0; i < col_n; i++)
		mine += x[i] * y[i];
	MPI_Allreduce(&mine, &all, 1, MPI_DOUBLE, MPI_SUM, along_row);
	return all;
}

static double *x, *z, *p, *q, *r;        /* col_n each */

/* Solves A z = x roughly, in INNER steps; returns |x - A z|. */
static double solve(void)
{
	double rho, sum;

	for (int64_t i = 0; i < col_n; i++) {
		z[i] = 0;
		r[i] = p[i] = x[i];
	}
	rho = dot(r, r);
	for (int step = 0; step < INNER; step++) {
		double alpha, before = rho;

		multiply(p, q);
		alpha = rho / dot(p, q);
		for (int64_t i = 0; i < col_n; i++) {
			z[i] += alpha * p[i];
			r[i] -= alpha * q[i];
		}
		rho = dot(r, r);
		for (int64_t i = 0; i < col_n; i++)
			p[i] = r[i] + rho / before * p[i];
	}
	multiply(z, r);
	sum = 0;
	for (int64_t i = 0; i < col_n; i++)
		r[i] = x[i] - r[i];
	sum = dot(r, r);
	return sqrt(sum);
}

int main(int argc, char **argv)
{
	double began, zeta = 0, work;
	int c;

	nas_start(&argc, &argv, "CG");
	nas_need_power_of_two();
	c = nas_class();
	n = classes[c].n;
	nas_say("n %lld, nonzeros per vector %d, iterations %d, shift %g", (long long)n,
		classes[c].nonzer, classes[c].niter, classes[c].shift);
	lay_out();
	make_matrix(classes[c].nonzer, classes[c].shift);
	partial = nas_alloc((size_t)row_n, sizeof *partial);
	whole = nas_alloc((size_t)row_n, sizeof *whole);
	double **vectors[] = { &x, &z, &p, &q, &r };
	for (int i = 0; i < 5; i++)
		*vectors[i] = nas_alloc((size_t)col_n, sizeof(double));
	for (int64_t i = 0; i < col_n; i++)
		x[i] = 1;
	MPI_Barrier(MPI_COMM_WORLD);
	began = MPI_Wtime();
	for (int it = 1; it <= classes[c].niter; it++) {
		double residual = solve(), scale;

		zeta = classes[c].shift + 1 / dot(x, z);
		scale = 1 / sqrt(dot(z, z));
		for (int64_t i = 0; i < col_n; i++)
			x[i] = scale * z[i];
		nas_say("iteration %d residual %.6e zeta %.13e", it, residual, zeta);
	}
	began = MPI_Wtime() - began;
	nas_say("zeta %.13e", zeta);
	work = classes[c].nonzer * (classes[c].nonzer + 1.0);
	work = 2.0 * classes[c].niter * (double)n * (3 + work + INNER * (5 + work) + 3) / 1e6;
	return nas_finish("cg", nas_error(zeta, classes[c].zeta) <= 1e-10, began, work);
}
