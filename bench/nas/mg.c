/* MG, multigrid (RNR-94-007, section 2.3; NAS-95-020 for the distribution):
 * V-cycles for the Poisson equation on a periodic n^3 grid. Halos of every
 * size between 8 bytes and megabytes move between neighbours.
 *
 * The grid is cut into equal boxes, the number of cuts per direction a power
 * of two. Levels too coarse to be cut that often are kept whole on every
 * rank. */
#include "nas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LEVEL 12
#define EXTREMES 10

static const struct { int n_log2, niter; double norm; } classes[] = {
	{ 5, 4, 0.5307707005734e-4 },
	{ 7, 4, 0.6467329375339e-5 },
	{ 8, 4, 0.2433365309069e-5 },
	{ 8, 20, 0.1800564401355e-5 },
	{ 9, 20, 0.5706732285740e-6 },
};

static const double A[4] = { -8.0 / 3, 0, 1.0 / 6, 1.0 / 12 };
static double S[3];                      /* the smoother; its 4th weight is 0 */

/* One level: a box of n[0] x n[1] x n[2] points with one ghost layer all
 * round, x fastest. split is 0 where every rank holds the whole grid. */
struct level {
	int n[3], split;
	double *u, *r;
};
static struct level level[MAX_LEVEL + 1];
static int top, cut_level;               /* coarsest split level; below it, whole grids */
static int cuts[3], coord[3];
static double *v, *out, *in;             /* right-hand side; halo buffers */

static size_t points(const struct level *l)
{
	return (size_t)(l->n[0] + 2) * (size_t)(l->n[1] + 2) * (size_t)(l->n[2] + 2);
}

/* Index of point (x, y, z), each -1..n. */
static inline size_t at(const struct level *l, int x, int y, int z)
{
	return ((size_t)(z + 1) * (size_t)(l->n[1] + 2) + (size_t)(y + 1)) * (size_t)(l->n[0] + 2) + (size_t)(x + 1);
}

static int rank_of(const int c[3]) { return (c[2] * cuts[1] + c[1]) * cuts[0] + c[0]; }

static void lay_out(int n_log2)
{
	int c = nas_rank, finest = 1;

	cuts[0] = cuts[1] = cuts[2] = 1;
	for (int d = 2, p = nas_size; p > 1; p /= 2, d = (d + 2) % 3)
		cuts[d] *= 2;
	for (int d = 0; d < 3; d++) {
		coord[d] = c % cuts[d];
		c /= cuts[d];
		if (cuts[d] > finest)
			finest = cuts[d];
	}
	top = n_log2;
	for (cut_level = 1; (1 << cut_level) < finest; cut_level++)
		;
	if (cut_level >= top)
		nas_fail("%d ranks: too many for a grid of 2^%d", nas_size, top);
	for (int k = 1; k <= top; k++) {
		struct level *l = &level[k];

		l->split = k >= cut_level;
		for (int d = 0; d < 3; d++)
			l->n[d] = (1 << k) / (l->split ? cuts[d] : 1);
		l->u = nas_alloc(points(l), sizeof *l->u);
		l->r = nas_alloc(points(l), sizeof *l->r);
	}
}

/* Copies the layer `where` of direction d between the grid and a buffer; the
 * directions below d include their ghosts. Returns the number of points. */
static int layer(const struct level *l, double *g, int d, int where, double *buffer, int put)
{
	int lo[3] = { 0, 0, 0 }, hi[3] = { l->n[0], l->n[1], l->n[2] }, n = 0;

	for (int e = 0; e < d; e++) {
		lo[e] = -1;
		hi[e]++;
	}
	lo[d] = where;
	hi[d] = where + 1;
	for (int z = lo[2]; z < hi[2]; z++)
		for (int y = lo[1]; y < hi[1]; y++)
			for (int x = lo[0]; x < hi[0]; x++) {
				double *p = &g[at(l, x, y, z)];

				if (put)
					*p = buffer[n++];
				else
					buffer[n++] = *p;
			}
	return n;
}

/* Fills the ghost layers of g from the neighbours, direction by direction. */
static void halo(const struct level *l, double *g)
{
	for (int d = 0; d < 3; d++) {
		const int last = l->n[d] - 1;

		for (int up = 0; up < 2; up++) {
			/* up: our last layer is the next box's ghost -1. */
			int n = layer(l, g, d, up ? last : 0, out, 0);
			double *from = out;

			if (l->split && cuts[d] > 1) {
				int next[3] = { coord[0], coord[1], coord[2] };
				int prev[3] = { coord[0], coord[1], coord[2] };

				next[d] = (coord[d] + (up ? 1 : cuts[d] - 1)) % cuts[d];
				prev[d] = (coord[d] + (up ? cuts[d] - 1 : 1)) % cuts[d];
				MPI_Sendrecv(out, n, MPI_DOUBLE, rank_of(next), d, in, n, MPI_DOUBLE,
					     rank_of(prev), d, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
				from = in;
			}
			layer(l, g, d, up ? -1 : last + 1, from, 1);
		}
	}
}

/* Sums, for x = -1..n of line (y, z), the 4 neighbours across the line that
 * share a face (face) and those that share an edge (edge). */
static void across(const struct level *l, const double *g, int y, int z, double *face, double *edge)
{
	const double *yl = &g[at(l, -1, y - 1, z)], *yh = &g[at(l, -1, y + 1, z)];
	const double *zl = &g[at(l, -1, y, z - 1)], *zh = &g[at(l, -1, y, z + 1)];
	const double *ll = &g[at(l, -1, y - 1, z - 1)], *hl = &g[at(l, -1, y + 1, z - 1)];
	const double *lh = &g[at(l, -1, y - 1, z + 1)], *hh = &g[at(l, -1, y + 1, z + 1)];

	for (int x = 0; x < l->n[0] + 2; x++) {
		face[x] = yl[x] + yh[x] + zl[x] + zh[x];
		edge[x] = ll[x] + hl[x] + lh[x] + hh[x];
	}
}

static double *face_sum, *edge_sum;      /* a line each */

/* r = b - A u, with ghosts; r may be b. */
static void residual(const struct level *l, const double *u, const double *b, double *r)
{
	double *f = face_sum + 1, *e = edge_sum + 1;

	for (int z = 0; z < l->n[2]; z++)
		for (int y = 0; y < l->n[1]; y++) {
			const size_t line = at(l, 0, y, z);

			across(l, u, y, z, face_sum, edge_sum);
			for (int x = 0; x < l->n[0]; x++)
				r[line + (size_t)x] = b[line + (size_t)x] - A[0] * u[line + (size_t)x]
					- A[2] * (e[x] + f[x - 1] + f[x + 1])
					- A[3] * (e[x - 1] + e[x + 1]);
		}
	halo(l, r);
}

/* u = u + S r, with ghosts. */
static void smooth(const struct level *l, double *u, const double *r)
{
	double *f = face_sum + 1, *e = edge_sum + 1;

	for (int z = 0; z < l->n[2]; z++)
		for (int y = 0; y < l->n[1]; y++) {
			const size_t line = at(l, 0, y, z);

			across(l, r, y, z, face_sum, edge_sum);
			for (int x = 0; x < l->n[0]; x++) {
				const double *c = &r[line + (size_t)x];

				u[line + (size_t)x] += S[0] * c[0] + S[1] * (c[-1] + c[1] + f[x])
					+ S[2] * (e[x] + f[x - 1] + f[x + 1]);
			}
		}
	halo(l, u);
}

/* coarse.r = P fine.r by full weighting: coarse point c lies on fine 2c+1. */
static void restrict_to(const struct level *fine, const struct level *coarse)
{
	double *f = face_sum + 1, *e = edge_sum + 1;

	for (int z = 0; z < coarse->n[2]; z++)
		for (int y = 0; y < coarse->n[1]; y++) {
			const double *c = &fine->r[at(fine, 0, 2 * y + 1, 2 * z + 1)];
			double *to = &coarse->r[at(coarse, 0, y, z)];

			across(fine, fine->r, 2 * y + 1, 2 * z + 1, face_sum, edge_sum);
			for (int x = 0; x < coarse->n[0]; x++) {
				const int m = 2 * x + 1;

				to[x] = 0.5 * c[m] + 0.25 * (c[m - 1] + c[m + 1] + f[m])
					+ 0.125 * (f[m - 1] + f[m + 1] + e[m])
					+ 0.0625 * (e[m - 1] + e[m + 1]);
			}
		}
	halo(coarse, coarse->r);
}

/* fine.u += Q coarse.u, trilinear, ghosts included. A fine index 2c+1 is
 * coarse c, an even one lies half-way between two. */
static void prolong(const struct level *coarse, const struct level *fine)
{
	for (int z = -1; z <= fine->n[2]; z++) {
		const int zl = (z + 1) / 2 - 1, zh = (z + 2) / 2 - 1;

		for (int y = -1; y <= fine->n[1]; y++) {
			const int yl = (y + 1) / 2 - 1, yh = (y + 2) / 2 - 1;
			double *to = &fine->u[at(fine, -1, y, z)];
			const double *a = &coarse->u[at(coarse, -1, yl, zl)], *b = &coarse->u[at(coarse, -1, yh, zl)];
			const double *c = &coarse->u[at(coarse, -1, yl, zh)], *d = &coarse->u[at(coarse, -1, yh, zh)];

			for (int x = 0; x < coarse->n[0] + 2; x++)
				face_sum[x] = 0.25 * (a[x] + b[x] + c[x] + d[x]);
			for (int x = 0; x < coarse->n[0] + 1; x++) {
				to[2 * x] += face_sum[x];
				to[2 * x + 1] += 0.5 * (face_sum[x] + face_sum[x + 1]);
			}
		}
	}
}

/* Makes the whole grid of the level below `cut_level` known to every rank:
 * gathers r of the coarsest split level into `whole`. */
static void gather(const struct level *l, const struct level *whole)
{
	const int n = l->n[0] * l->n[1] * l->n[2];
	double *mine = nas_alloc((size_t)n, sizeof *mine);
	double *all = nas_alloc((size_t)n * (size_t)nas_size, sizeof *all), *p = mine;

	for (int z = 0; z < l->n[2]; z++)
		for (int y = 0; y < l->n[1]; y++)
			for (int x = 0; x < l->n[0]; x++)
				*p++ = l->r[at(l, x, y, z)];
	MPI_Allgather(mine, n, MPI_DOUBLE, all, n, MPI_DOUBLE, MPI_COMM_WORLD);
	p = all;
	for (int k = 0; k < nas_size; k++) {
		const int cx = k % cuts[0], cy = k / cuts[0] % cuts[1], cz = k / cuts[0] / cuts[1];

		for (int z = 0; z < l->n[2]; z++)
			for (int y = 0; y < l->n[1]; y++)
				for (int x = 0; x < l->n[0]; x++)
					whole->r[at(whole, cx * l->n[0] + x, cy * l->n[1] + y, cz * l->n[2] + z)] = *p++;
	}
	halo(whole, whole->r);
	free(all);
	free(mine);
}

static struct level whole;               /* level cut_level, unsplit, when cut_level > 1 */

/* Takes this rank's box (and ghosts) of the whole grid's u. */
static void scatter(const struct level *l)
{
	for (int z = -1; z <= l->n[2]; z++)
		for (int y = -1; y <= l->n[1]; y++)
			for (int x = -1; x <= l->n[0]; x++)
				l->u[at(l, x, y, z)] = whole.u[at(&whole, coord[0] * l->n[0] + x,
					coord[1] * l->n[1] + y, coord[2] * l->n[2] + z)];
}

static void clear(const struct level *l) { memset(l->u, 0, points(l) * sizeof *l->u); }

/* The way up through level l: u = Q coarse, r -= A u, u += S r. */
static void ascend(const struct level *coarse, const struct level *l)
{
	clear(l);
	prolong(coarse, l);
	residual(l, l->u, l->r, l->r);
	smooth(l, l->u, l->r);
}

static void v_cycle(void)
{
	const struct level *below;
	int k;

	for (k = top; k > cut_level; k--)
		restrict_to(&level[k], &level[k - 1]);
	if (cut_level > 1) {
		gather(&level[cut_level], &whole);
		restrict_to(&whole, &level[cut_level - 1]);
		for (k = cut_level - 1; k > 1; k--)
			restrict_to(&level[k], &level[k - 1]);
	}
	clear(&level[1]);
	smooth(&level[1], level[1].u, level[1].r);
	for (k = 2; k < cut_level; k++)
		ascend(&level[k - 1], &level[k]);
	if (cut_level > 1) {
		ascend(&level[cut_level - 1], &whole);
		scatter(&level[cut_level]);
	}
	for (k = cut_level + 1; k < top; k++)
		ascend(&level[k - 1], &level[k]);
	below = &level[top - 1];
	prolong(below, &level[top]);
	residual(&level[top], level[top].u, v, level[top].r);
	smooth(&level[top], level[top].u, level[top].r);
}

/* One of the ten largest or smallest numbers of the random field. */
struct extreme { double value; int64_t index; };

/* Puts e into the sorted list of the EXTREMES largest (sign 1) or smallest
 * (sign -1) if it belongs there. */
static void keep(struct extreme *list, struct extreme e, double sign)
{
	int i = EXTREMES - 1;

	if (sign * e.value <= sign * list[i].value)
		return;
	for (; i > 0 && sign * list[i - 1].value < sign * e.value; i--)
		list[i] = list[i - 1];
	list[i] = e;
}

/* Sets v to `value` at the extremes of the global random field. */
static void place(const struct level *l, struct extreme *mine, double sign)
{
	const int n = 1 << top;
	struct extreme best[EXTREMES], *all = nas_alloc((size_t)nas_size * EXTREMES, sizeof *all);

	MPI_Allgather(mine, EXTREMES * (int)sizeof *mine, MPI_BYTE, all, EXTREMES * (int)sizeof *mine,
		      MPI_BYTE, MPI_COMM_WORLD);
	for (int i = 0; i < EXTREMES; i++)
		best[i] = (struct extreme){ -2 * sign, -1 };
	for (int i = 0; i < nas_size * EXTREMES; i++)
		keep(best, all[i], sign);
	for (int i = 0; i < EXTREMES; i++) {
		int x = (int)(best[i].index % n) - coord[0] * l->n[0];
		int y = (int)(best[i].index / n % n) - coord[1] * l->n[1];
		int z = (int)(best[i].index / n / n) - coord[2] * l->n[2];

		if (x >= 0 && x < l->n[0] && y >= 0 && y < l->n[1] && z >= 0 && z < l->n[2])
			v[at(l, x, y, z)] = sign;
	}
	free(all);
}

/* v = +1 at the ten largest and -1 at the ten smallest of n^3 random numbers
 * (numbered x fastest), 0 elsewhere. */
static void make_charges(const struct level *l)
{
	struct extreme large[EXTREMES], small[EXTREMES];
	const int64_t n = INT64_C(1) << top;

	for (int i = 0; i < EXTREMES; i++) {
		large[i] = (struct extreme){ -2, -1 };
		small[i] = (struct extreme){ 2, -1 };
	}
	for (int z = 0; z < l->n[2]; z++)
		for (int y = 0; y < l->n[1]; y++) {
			int64_t first = ((coord[2] * l->n[2] + z) * n + coord[1] * l->n[1] + y) * n
				+ coord[0] * l->n[0];
			uint64_t seed = (UINT64_C(314159265) * nas_power(NAS_A, (uint64_t)first)) & NAS_MASK;

			for (int x = 0; x < l->n[0]; x++) {
				struct extreme e = { nas_random(&seed, NAS_A), first + x };

				keep(large, e, 1);
				keep(small, e, -1);
			}
		}
	place(l, large, 1);
	place(l, small, -1);
	halo(l, v);
}

/* The L2 norm of r, over the whole grid. */
static double norm(const struct level *l)
{
	double mine = 0, all;

	for (int z = 0; z < l->n[2]; z++)
		for (int y = 0; y < l->n[1]; y++)
			for (int x = 0; x < l->n[0]; x++) {
				double r = l->r[at(l, x, y, z)];

				mine += r * r;
			}
	MPI_Allreduce(&mine, &all, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	return sqrt(all / ldexp(1, 3 * top));
}

static void set_up(int c)
{
	const int fine_smoother = CLASS == 'S' || CLASS == 'W' || CLASS == 'A';
	const struct level *l = &level[classes[c].n_log2];
	size_t plane, line;

	S[0] = fine_smoother ? -3.0 / 8 : -3.0 / 17;
	S[1] = fine_smoother ? 1.0 / 32 : 1.0 / 33;
	S[2] = fine_smoother ? -1.0 / 64 : -1.0 / 61;
	lay_out(classes[c].n_log2);
	line = (size_t)(1 << top) + 2;
	plane = line * line;
	v = nas_alloc(points(l), sizeof *v);
	out = nas_alloc(plane, sizeof *out);
	in = nas_alloc(plane, sizeof *in);
	face_sum = nas_alloc(line, sizeof *face_sum);
	edge_sum = nas_alloc(line, sizeof *edge_sum);
	if (cut_level > 1) {
		whole.split = 0;
		for (int d = 0; d < 3; d++)
			whole.n[d] = 1 << cut_level;
		whole.u = nas_alloc(points(&whole), sizeof *whole.u);
		whole.r = nas_alloc(points(&whole), sizeof *whole.r);
	}
	make_charges(l);
}

int main(int argc, char **argv)
{
	const struct level *l;
	double start, last;
	int c;

	nas_start(&argc, &argv, "MG");
	nas_need_power_of_two();
	c = nas_class();
	nas_say("grid %d^3, iterations %d", 1 << classes[c].n_log2, classes[c].niter);
	set_up(c);
	l = &level[top];
	MPI_Barrier(MPI_COMM_WORLD);
	start = MPI_Wtime();
	residual(l, l->u, v, l->r);
	nas_say("norm at the start %.12e", norm(l));
	for (int it = 1; it <= classes[c].niter; it++) {
		v_cycle();
		residual(l, l->u, v, l->r);
		if (it % 5 == 0 || it == classes[c].niter || it == 1)
			nas_say("iteration %d norm %.12e", it, norm(l));
	}
	last = norm(l);
	start = MPI_Wtime() - start;
	nas_say("norm %.12e", last);
	return nas_finish("mg", nas_error(last, classes[c].norm) <= 1e-8, start,
			  58.0 * classes[c].niter * ldexp(1, 3 * top) / 1e6);
}
