#include "cluster.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "f16.h"
#include "rows.h"

enum { ROWS_PER_TURN = 16, MAX_FITS = 32 };

enum { MAX_ENTRIES = 256 };

typedef struct point {
    double value;
    double weight;
} point;

/* What one thread needs for one row; n_cols or n_cols + 1 elements each. */
typedef struct scratch {
    point *points;       /* sorted, distinct, weight > 0 */
    double *w, *s, *q;   /* prefix sums of weight, weight·x, weight·x²; x is centred */
    double *best, *next; /* best[i]: least cost of the first i points in c clusters */
    double *head;        /* best[j] - q[j], the part of a cost that depends on j alone */
    uint32_t *starts;    /* [k, n_cols + 1]: where the last of c clusters starts */
} scratch;

typedef struct job {
    const float *values, *weights;
    const uint8_t *kept;
    uint32_t n_rows, n_cols, k;
    uint16_t *table;
    uint8_t *indices;
    double *errors;
} job;

/* ---- one row: points and prefix sums ---------------------------------------------------------- */

static int compare_points(const void *a, const void *b) {
    double x = ((const point *)a)->value, y = ((const point *)b)->value;
    return (x > y) - (x < y);
}

/* Gathers what takes part in the clustering, sorted. Returns the number of points. */
static uint32_t collect_points(const float *values, const float *weights, const uint8_t *kept, uint32_t n,
                               point *points) {
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!(kept && kept[i]) && !(weights && weights[i] <= 0))
            points[m++] = (point){values[i], weights ? weights[i] : 1};
    qsort(points, m, sizeof *points, compare_points);
    return m;
}

/* Merges equal values and fills the prefix sums; returns the number of distinct points. x is the value less
 * the row's weighted mean, which keeps the digits of differences of squares. A point too light to change the
 * sum of weights is left out: w must ascend, since its differences are divided by. */
static uint32_t sum_points(point *points, uint32_t m, scratch *t) {
    double w = 0, s = 0;
    for (uint32_t i = 0; i < m; i++) {
        w += points[i].weight;
        s += points[i].weight * points[i].value;
    }
    double centre = s / w, unit = m / w; /* mean weight 1: squares of gradients are tiny */
    uint32_t d = 0;
    t->w[0] = t->s[0] = t->q[0] = 0;
    for (uint32_t i = 0; i < m;) {
        double value = points[i].value, x = value - centre, weight = 0;
        for (; i < m && points[i].value == value; i++)
            weight += points[i].weight * unit;
        t->w[d + 1] = t->w[d] + weight;
        t->s[d + 1] = t->s[d] + weight * x;
        t->q[d + 1] = t->q[d] + weight * x * x;
        if (t->w[d + 1] > t->w[d])
            points[d++] = (point){value, weight};
    }
    return d;
}

/* ---- one row: dynamic programming ------------------------------------------------------------- */

/* next[i] = min_j best[j] + cost(j, i) for i in [i0, i1], where the smallest minimising j lies in [j0, j1];
 * cost(j, i) = (q[i] - q[j]) - (s[i] - s[j])² / (w[i] - w[j]), of the points j … i-1 about their mean. */
static void fill_layer(const scratch *t, uint32_t *starts, uint32_t i0, uint32_t i1, uint32_t j0,
                       uint32_t j1) {
    while (i0 <= i1) {
        uint32_t i = i0 + (i1 - i0) / 2, last = j1 < i ? j1 : i - 1, at = j0;
        double least = INFINITY, wi = t->w[i], si = t->s[i];
        for (uint32_t j = j0; j <= last; j++) {
            double s = si - t->s[j], cost = t->head[j] - s * s / (wi - t->w[j]);
            if (cost < least) {
                least = cost;
                at = j;
            }
        }
        t->next[i] = least + t->q[i];
        starts[i] = at;
        if (i > i0)
            fill_layer(t, starts, i0, i - 1, j0, at);
        i0 = i + 1; /* the right half: loop instead of recursing */
        j0 = at;
    }
}

/* Splits d points into k clusters, k < d, and writes their means to `means` [k], ascending. */
static void solve(scratch *t, uint32_t d, uint32_t k, double *means) {
    for (uint32_t i = 1; i <= d; i++)
        t->best[i] = t->q[i] - t->s[i] * t->s[i] / t->w[i];
    for (uint32_t c = 2; c <= k; c++) {
        for (uint32_t j = c - 1; j < d; j++)
            t->head[j] = t->best[j] - t->q[j];
        /* Only splits that leave a point for each later cluster matter; the last layer has one. */
        uint32_t i0 = c == k ? d : c, i1 = d - (k - c);
        fill_layer(t, t->starts + (size_t)(c - 1) * (d + 1), i0, i1, c - 1, d - 1);
        double *swap = t->best;
        t->best = t->next;
        t->next = swap;
    }
    for (uint32_t c = k, end = d; c >= 1; c--) {
        uint32_t start = c > 1 ? t->starts[(size_t)(c - 1) * (d + 1) + end] : 0;
        double w = 0, s = 0; /* summed afresh: a light cluster's mean has no digits in the prefix sums */
        for (uint32_t i = start; i < end; i++) {
            w += t->points[i].weight;
            s += t->points[i].weight * t->points[i].value;
        }
        means[c - 1] = s / w;
        end = start;
    }
}

/* ---- one row: fitting the rounded table --------------------------------------------------------- */

/* Entry of the ascending `table` [k] nearest to x, the lower one at a tie. */
static uint32_t nearest(const double *table, uint32_t k, double x) {
    uint32_t lo = 0, n = k;
    while (n > 1) { /* the last entry <= x, or 0 */
        uint32_t half = n / 2;
        if (table[lo + half] <= x)
            lo += half;
        n -= half;
    }
    while (lo > 0 && table[lo - 1] == table[lo])
        lo--;
    uint32_t up = lo;
    while (up + 1 < k && table[up] == table[lo])
        up++;
    return fabs(table[up] - x) < fabs(x - table[lo]) ? up : lo;
}

/* Assigns every value to its nearest entry; returns the weighted squared error. `sums` [k, 2] receives Σ
 * weight and Σ weight·value of each entry. `indices` may be NULL. */
static double assign(const float *values, const float *weights, const uint8_t *kept, uint32_t n,
                     const double *table, uint32_t k, uint8_t *indices, double *sums) {
    double error = 0;
    memset(sums, 0, 2 * k * sizeof *sums);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t entry = nearest(table, k, values[i]);
        if (indices)
            indices[i] = (uint8_t)entry;
        if (kept && kept[i])
            continue;
        double weight = weights ? weights[i] : 1, difference = values[i] - table[entry];
        error += weight * difference * difference;
        sums[2 * entry] += weight;
        sums[2 * entry + 1] += weight * values[i];
    }
    return error;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Rounds `table` [k] to f16 and improves it: an entry moves to the f16 nearest the mean of its values as long
 * as the error falls. */
static void round_table(const float *values, const float *weights, const uint8_t *kept, uint32_t n,
                        double *table, uint32_t k) {
    double sums[2 * MAX_ENTRIES], tried[MAX_ENTRIES], least = INFINITY;
    for (uint32_t e = 0; e < k; e++)
        tried[e] = sq_f16_decode(sq_f16_encode(table[e]));
    for (int fit = 0; fit < MAX_FITS; fit++) {
        qsort(tried, k, sizeof *tried, compare_doubles);
        double error = assign(values, weights, kept, n, tried, k, NULL, sums);
        if (!(error < least))
            return;
        least = error;
        memcpy(table, tried, k * sizeof *table);
        for (uint32_t e = 0; e < k; e++)
            if (sums[2 * e] > 0)
                tried[e] = sq_f16_decode(sq_f16_encode(sums[2 * e + 1] / sums[2 * e]));
    }
}

static void cluster_row(const job *j, scratch *t, uint32_t row) {
    uint32_t n = j->n_cols, k = j->k;
    const float *values = j->values + (size_t)row * n;
    const float *weights = j->weights ? j->weights + (size_t)row * n : NULL;
    const uint8_t *kept = j->kept ? j->kept + (size_t)row * n : NULL;

    uint32_t m = collect_points(values, weights, kept, n, t->points);
    if (m == 0) {
        weights = NULL;
        m = collect_points(values, weights, kept, n, t->points);
    }
    if (m == 0) {
        kept = NULL;
        m = collect_points(values, weights, kept, n, t->points);
    }
    double table[MAX_ENTRIES] = {0}, sums[2 * MAX_ENTRIES];
    uint32_t d = sum_points(t->points, m, t);
    if (d > k)
        solve(t, d, k, table);
    else
        for (uint32_t e = 0; e < k; e++)
            table[e] = t->points[e < d ? e : d - 1].value;

    j->errors[2 * (size_t)row] = assign(values, weights, kept, n, table, k, NULL, sums);
    round_table(values, weights, kept, n, table, k);
    uint8_t *indices = j->indices + (size_t)row * n;
    j->errors[2 * (size_t)row + 1] = assign(values, weights, kept, n, table, k, indices, sums);
    for (uint32_t e = 0; e < k; e++)
        j->table[(size_t)row * k + e] = sq_f16_encode(table[e]);
}

/* ---- rows and threads --------------------------------------------------------------------------- */

static void scratch_free(void *scratch_of_thread) {
    scratch *t = scratch_of_thread;
    free(t->points);
    free(t->w);
    free(t->s);
    free(t->q);
    free(t->best);
    free(t->next);
    free(t->head);
    free(t->starts);
    free(t);
}

static void *scratch_create(const void *context) {
    const job *j = context;
    size_t n = (size_t)j->n_cols + 1;
    scratch *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    *t = (scratch){
        .points = malloc(n * sizeof *t->points),
        .w = malloc(n * sizeof *t->w),
        .s = malloc(n * sizeof *t->s),
        .q = malloc(n * sizeof *t->q),
        .best = malloc(n * sizeof *t->best),
        .next = malloc(n * sizeof *t->next),
        .head = malloc(n * sizeof *t->head),
        .starts = malloc(n * j->k * sizeof *t->starts),
    };
    if (t->points && t->w && t->s && t->q && t->best && t->next && t->head && t->starts)
        return t;
    scratch_free(t);
    return NULL;
}

static void cluster_some(const void *context, void *scratch_of_thread, uint32_t row0, uint32_t row1) {
    for (uint32_t row = row0; row < row1; row++)
        cluster_row(context, scratch_of_thread, row);
}

int sq_cluster_rows(const float *values, const float *weights, const uint8_t *kept, uint32_t n_rows,
                    uint32_t n_cols, uint32_t k, uint32_t n_threads, uint16_t *table, uint8_t *indices,
                    double *errors) {
    static const sq_row_work work = {ROWS_PER_TURN, scratch_create, scratch_free, cluster_some};
    job j = {values, weights, kept, n_rows, n_cols, k, table, indices, errors};
    return sq_rows_run(&work, &j, n_rows, n_threads);
}
