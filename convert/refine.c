#include "refine.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "f16.h"
#include "rows.h"

/* GROUP rows share each part of H that is read. Of COLUMNS at a time the errors are settled before the other
 * columns hear of them. Of the rows of H TERMS are added at a time, in stretches that stay in the cache. */
enum { GROUP = 8, COLUMNS = 64, TERMS = 8, STRETCH = 256, MAX_ENTRIES = 16 };

enum { ROUNDINGS = 3, DESCENTS = 3, SWEEPS = 4 };

_Static_assert(SQ_REFINE_OBJECTIVES == 1 + 2 * (ROUNDINGS + DESCENTS), "one before, two after each");

/* Element by element, without a sum across them: vectors of any width give the same. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

typedef struct job {
    const float *values, *hessian, *factor;
    const uint8_t *kept;
    uint32_t n_cols, k;
    uint16_t *table;
    uint8_t *indices;
    double *objective;
} job;

/* Indices and what they lead to; [n_cols] each. */
typedef struct fit {
    uint8_t *indices;
    float *error;    /* P c - w, 0 where kept */
    float *gradient; /* H error; while a row is rounded: Mᵀ error, of the columns settled so far */
    double objective;
} fit;

/* One row while it is refined. */
typedef struct row {
    const float *values;
    const uint8_t *kept;        /* or NULL */
    float table[MAX_ENTRIES];   /* always numbers that f16 has */
    float middles[MAX_ENTRIES]; /* between its entries; past the last one there is nothing */
    fit now, other;             /* the best so far, and room for an attempt */
    float *sums;                /* [k, n_cols] PᵀH without the kept columns' rows */
    uint32_t *order;            /* [n_cols] the columns that are not kept, by their index */
    uint32_t ends[MAX_ENTRIES]; /* where in `order` the columns of an index end */
    uint32_t n_moves;           /* of a block of columns those whose error has changed, */
    uint32_t moved[COLUMNS];    /* which they are, */
    float moves[COLUMNS];       /* and by how much */
} row;

typedef struct scratch {
    row rows[GROUP];
    float *floats;    /* what the rows' pointers point to */
    uint32_t *orders; /* likewise */
    uint8_t *bytes;   /* and their indices */
} scratch;

static bool is_kept(const row *r, uint32_t i) {
    return r->kept && r->kept[i];
}

static inline void add_scaled(float *y, const float *x, float a, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* y[j] += Σ_t scales[t] matrix[rows[t], j] for j < width; without scales they are 1. */
static inline void add_rows(float *restrict y, const float *matrix, uint32_t n, const uint32_t *rows,
                            const float *scales, uint32_t n_terms, uint32_t width) {
    uint32_t t = 0;
    for (; t + TERMS <= n_terms; t += TERMS) {
        const float *x[TERMS];
        float a[TERMS];
        for (uint32_t i = 0; i < TERMS; i++) {
            x[i] = matrix + (size_t)rows[t + i] * n;
            a[i] = scales ? scales[t + i] : 1;
        }
        for (uint32_t j = 0; j < width; j++) {
            float sum = y[j];
            for (uint32_t i = 0; i < TERMS; i++)
                sum += a[i] * x[i][j];
            y[j] = sum;
        }
    }
    for (; t < n_terms; t++)
        add_scaled(y, matrix + (size_t)rows[t] * n, scales ? scales[t] : 1, width);
}

/* ---- what the steps need ----------------------------------------------------------------------- */

/* Entries ascend: the number of midpoints below x. */
static inline uint8_t nearest(const float *middles, float x) {
    uint32_t e = 0;
    for (uint32_t i = 0; i < MAX_ENTRIES; i++)
        e += x > middles[i];
    return (uint8_t)e;
}

/* To be called when the table has changed. */
static void middles_fill(row *r, uint32_t k) {
    for (uint32_t e = 0; e < MAX_ENTRIES; e++)
        r->middles[e] = e + 1 < k ? (r->table[e] + r->table[e + 1]) / 2 : INFINITY;
}

static void errors_fill(row *r, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        r->now.error[i] = is_kept(r, i) ? 0 : r->table[r->now.indices[i]] - r->values[i];
}

static void objective_fill(row *r, uint32_t n) {
    r->now.objective = 0;
    for (uint32_t i = 0; i < n; i++)
        r->now.objective += (double)r->now.error[i] * (double)r->now.gradient[i];
}

/* gradient[i] += Σ move · matrix[moved, i] over the row's moves, for i from `from` on. */
WIDE static void moves_spread(const float *matrix, uint32_t n, uint32_t from, row *rows, uint32_t n_rows) {
    for (uint32_t j = from; j < n; j += STRETCH)
        for (uint32_t r = 0; r < n_rows; r++)
            add_rows(rows[r].now.gradient + j, matrix + j, n, rows[r].moved, rows[r].moves, rows[r].n_moves,
                     n - j < STRETCH ? n - j : STRETCH);
}

static void move_note(row *r, uint32_t i, float move) {
    r->moved[r->n_moves] = i;
    r->moves[r->n_moves++] = move;
}

static void gradients_fill(const float *hessian, uint32_t n, row *rows, uint32_t n_rows) {
    for (uint32_t r = 0; r < n_rows; r++)
        memset(rows[r].now.gradient, 0, n * sizeof(float));
    for (uint32_t first = 0; first < n; first += COLUMNS) {
        for (uint32_t r = 0; r < n_rows; r++) {
            rows[r].n_moves = 0;
            for (uint32_t i = first; i < n && i < first + COLUMNS; i++)
                if (rows[r].now.error[i] != 0)
                    move_note(&rows[r], i, rows[r].now.error[i]);
        }
        moves_spread(hessian, n, 0, rows, n_rows);
    }
}

/* Sorts the columns that are not kept by their index. */
static void order_fill(row *r, uint32_t n, uint32_t k) {
    uint32_t n_before = 0;
    memset(r->ends, 0, sizeof r->ends);
    for (uint32_t i = 0; i < n; i++)
        r->ends[r->now.indices[i]] += !is_kept(r, i);
    for (uint32_t e = 0; e < k; e++) {
        uint32_t n_of_entry = r->ends[e];
        r->ends[e] = n_before; /* for now where they start; filling moves that to the end */
        n_before += n_of_entry;
    }
    for (uint32_t i = 0; i < n; i++)
        if (!is_kept(r, i))
            r->order[r->ends[r->now.indices[i]]++] = i;
}

/* sums[e] = Σ of the rows of H whose index is e. */
WIDE static void sums_fill(const float *hessian, uint32_t n, uint32_t k, row *rows, uint32_t n_rows) {
    for (uint32_t r = 0; r < n_rows; r++) {
        order_fill(&rows[r], n, k);
        memset(rows[r].sums, 0, (size_t)k * n * sizeof(float));
    }
    for (uint32_t j = 0; j < n; j += STRETCH)
        for (uint32_t r = 0; r < n_rows; r++)
            for (uint32_t e = 0, start = 0; e < k; start = rows[r].ends[e++])
                add_rows(rows[r].sums + (size_t)e * n + j, hessian + j, n, rows[r].order + start, NULL,
                         rows[r].ends[e] - start, n - j < STRETCH ? n - j : STRETCH);
}

/* ---- table ------------------------------------------------------------------------------------- */

/* Solves A x = b, A [k, k] symmetric and positive definite, by Cholesky's method; x replaces b. */
static bool solve(double (*a)[MAX_ENTRIES], double *b, uint32_t k) {
    for (uint32_t j = 0; j < k; j++) {
        for (uint32_t p = 0; p < j; p++)
            a[j][j] -= a[j][p] * a[j][p];
        if (!(a[j][j] > 0))
            return false;
        a[j][j] = sqrt(a[j][j]);
        for (uint32_t i = j + 1; i < k; i++) {
            for (uint32_t p = 0; p < j; p++)
                a[i][j] -= a[i][p] * a[j][p];
            a[i][j] /= a[j][j];
        }
    }
    for (uint32_t i = 0; i < k; i++) {
        for (uint32_t p = 0; p < i; p++)
            b[i] -= a[i][p] * b[p];
        b[i] /= a[i][i];
    }
    for (uint32_t i = k; i-- > 0;) {
        for (uint32_t p = i + 1; p < k; p++)
            b[i] -= a[p][i] * b[p];
        b[i] /= a[i][i];
    }
    return true;
}

/* By how much the best table differs: (PᵀHP + εI) x = -Pᵀ gradient. With ε an entry that nothing uses stays.
 */
static bool table_step(const row *r, uint32_t n, uint32_t k, double *step) {
    double a[MAX_ENTRIES][MAX_ENTRIES] = {{0}}, trace = 0;
    memset(step, 0, k * sizeof *step);
    for (uint32_t i = 0; i < n; i++) {
        if (is_kept(r, i))
            continue;
        uint8_t index = r->now.indices[i];
        step[index] -= (double)r->now.gradient[i];
        for (uint32_t e = 0; e < k; e++)
            a[e][index] += (double)r->sums[(size_t)e * n + i];
    }
    for (uint32_t e = 0; e < k; e++)
        trace += a[e][e];
    for (uint32_t e = 0; e < k; e++)
        a[e][e] += 1e-7 * trace / k;
    return trace > 0 && solve(a, step, k);
}

/* Entries in ascending order, as the file has them. */
static void table_sort(row *r, uint32_t n, uint32_t k) {
    float sorted[MAX_ENTRIES] = {0};
    uint8_t rank[MAX_ENTRIES] = {0};
    for (uint32_t e = 0; e < k; e++) {
        for (uint32_t o = 0; o < k; o++)
            rank[e] += r->table[o] < r->table[e] || (r->table[o] == r->table[e] && o < e);
        sorted[rank[e]] = r->table[e];
    }
    memcpy(r->table, sorted, sizeof sorted);
    for (uint32_t i = 0; i < n; i++)
        r->now.indices[i] = rank[r->now.indices[i]];
}

/* Takes the best table, rounded to f16, if that is better than the one there is. */
static void table_fit(row *r, uint32_t n, uint32_t k) {
    double step[MAX_ENTRIES];
    float before[MAX_ENTRIES];
    if (!table_step(r, n, k, step))
        return;
    memcpy(before, r->table, sizeof before);
    double objective = r->now.objective;
    memcpy(r->other.gradient, r->now.gradient, n * sizeof *r->now.gradient);
    for (uint32_t e = 0; e < k; e++) {
        r->table[e] = sq_f16_decode(sq_f16_encode((double)before[e] + step[e]));
        add_scaled(r->now.gradient, r->sums + (size_t)e * n, r->table[e] - before[e], n);
    }
    errors_fill(r, n);
    objective_fill(r, n);
    if (r->now.objective < objective) {
        table_sort(r, n, k);
        middles_fill(r, k);
        return;
    }
    memcpy(r->table, before, sizeof before);
    memcpy(r->now.gradient, r->other.gradient, n * sizeof *r->now.gradient);
    errors_fill(r, n);
    r->now.objective = objective;
}

/* ---- indices ----------------------------------------------------------------------------------- */

/* Rounds the columns [first, first + width) of a row. */
WIDE static void block_round(const float *factor, uint32_t n, uint32_t first, uint32_t width, row *r) {
    float *feedback = r->now.gradient + first;
    r->n_moves = 0;
    for (uint32_t c = 0; c < width; c++) {
        uint32_t i = first + c;
        r->now.indices[i] = nearest(r->middles, r->values[i] - feedback[c]);
        if (is_kept(r, i))
            continue;
        float error = r->table[r->now.indices[i]] - r->values[i];
        move_note(r, i, error);
        add_scaled(feedback + c + 1, factor + (size_t)i * n + i + 1, error, width - c - 1);
    }
}

static void rows_swap(row *rows, uint32_t n_rows) {
    for (uint32_t r = 0; r < n_rows; r++) {
        fit now = rows[r].now;
        rows[r].now = rows[r].other;
        rows[r].other = now;
    }
}

/* Finds indices anew and takes those that are better than what there is. Returns whether any are. */
static bool indices_round(const job *j, row *rows, uint32_t n_rows) {
    uint32_t n = j->n_cols;
    bool changed = false;
    rows_swap(rows, n_rows);
    for (uint32_t r = 0; r < n_rows; r++)
        memset(rows[r].now.gradient, 0, n * sizeof(float));
    for (uint32_t first = 0; first < n; first += COLUMNS) {
        uint32_t width = n - first < COLUMNS ? n - first : COLUMNS;
        for (uint32_t r = 0; r < n_rows; r++)
            block_round(j->factor, n, first, width, &rows[r]);
        moves_spread(j->factor, n, first + width, rows, n_rows);
    }
    for (uint32_t r = 0; r < n_rows; r++)
        errors_fill(&rows[r], n);
    gradients_fill(j->hessian, n, rows, n_rows);
    for (uint32_t r = 0; r < n_rows; r++) {
        objective_fill(&rows[r], n);
        if (rows[r].now.objective < rows[r].other.objective)
            changed = true;
        else
            rows_swap(&rows[r], 1);
    }
    return changed;
}

/* Descends a row along the columns [first, first + width). Returns whether an index changed. */
WIDE static bool block_descend(const float *hessian, uint32_t n, uint32_t first, uint32_t width, row *r) {
    float gradient[COLUMNS];
    r->n_moves = 0;
    memcpy(gradient, r->now.gradient + first, width * sizeof *gradient);
    for (uint32_t c = 0; c < width; c++) {
        uint32_t i = first + c;
        const float *h = hessian + (size_t)i * n;
        if (is_kept(r, i) || !(h[i] > 0))
            continue;
        float here = r->table[r->now.indices[i]], best = here - gradient[c] / h[i];
        uint8_t index = nearest(r->middles, best);
        float entry = r->table[index];
        if (fabsf(entry - best) >= fabsf(here - best))
            continue;
        r->now.indices[i] = index;
        r->now.error[i] = entry - r->values[i];
        move_note(r, i, entry - here);
        add_scaled(gradient + c + 1, h + i + 1, entry - here, width - c - 1);
    }
    return r->n_moves > 0;
}

/* Returns whether an index changed. */
static bool indices_descend(const job *j, row *rows, uint32_t n_rows) {
    uint32_t n = j->n_cols;
    bool changed = true, any = false;
    for (uint32_t sweep = 0; changed && sweep < SWEEPS; sweep++) {
        changed = false;
        for (uint32_t first = 0; first < n; first += COLUMNS) {
            uint32_t width = n - first < COLUMNS ? n - first : COLUMNS;
            for (uint32_t r = 0; r < n_rows; r++)
                changed |= block_descend(j->hessian, n, first, width, &rows[r]);
            moves_spread(j->hessian, n, 0, rows, n_rows);
        }
        any |= changed;
    }
    for (uint32_t r = 0; r < n_rows; r++)
        objective_fill(&rows[r], n);
    return any;
}

/* ---- rows -------------------------------------------------------------------------------------- */

static void row_load(const job *j, uint32_t index, row *r) {
    uint32_t n = j->n_cols;
    r->values = j->values + (size_t)index * n;
    r->kept = j->kept ? j->kept + (size_t)index * n : NULL;
    memcpy(r->now.indices, j->indices + (size_t)index * n, n);
    for (uint32_t e = 0; e < j->k; e++)
        r->table[e] = sq_f16_decode(j->table[(size_t)index * j->k + e]);
    middles_fill(r, j->k);
    errors_fill(r, n);
}

static void row_store(const job *j, uint32_t index, const row *r) {
    uint8_t *indices = j->indices + (size_t)index * j->n_cols;
    for (uint32_t e = 0; e < j->k; e++)
        j->table[(size_t)index * j->k + e] = sq_f16_encode((double)r->table[e]);
    for (uint32_t i = 0; i < j->n_cols; i++)
        indices[i] = is_kept(r, i) ? nearest(r->middles, r->values[i]) : r->now.indices[i];
}

static void objectives_note(const job *j, uint32_t row0, const row *rows, uint32_t n_rows, uint32_t step) {
    for (uint32_t r = 0; r < n_rows; r++)
        j->objective[(size_t)(row0 + r) * SQ_REFINE_OBJECTIVES + step] = rows[r].now.objective;
}

static void refine_group(const void *context, void *scratch_of_thread, uint32_t row0, uint32_t row1) {
    const job *j = context;
    row *rows = ((scratch *)scratch_of_thread)->rows;
    uint32_t n = j->n_cols, n_rows = row1 - row0, step = 0;
    for (uint32_t r = 0; r < n_rows; r++)
        row_load(j, row0 + r, &rows[r]);
    gradients_fill(j->hessian, n, rows, n_rows);
    for (uint32_t r = 0; r < n_rows; r++)
        objective_fill(&rows[r], n);
    objectives_note(j, row0, rows, n_rows, step++);
    for (uint32_t round = 0; round < ROUNDINGS + DESCENTS; round++) {
        bool changed = round < ROUNDINGS ? indices_round(j, rows, n_rows) : indices_descend(j, rows, n_rows);
        objectives_note(j, row0, rows, n_rows, step++);
        if (changed) {
            sums_fill(j->hessian, n, j->k, rows, n_rows);
            for (uint32_t r = 0; r < n_rows; r++)
                table_fit(&rows[r], n, j->k);
        }
        objectives_note(j, row0, rows, n_rows, step++);
    }
    for (uint32_t r = 0; r < n_rows; r++)
        row_store(j, row0 + r, &rows[r]);
}

static void scratch_free(void *scratch_of_thread) {
    scratch *t = scratch_of_thread;
    free(t->floats);
    free(t->orders);
    free(t->bytes);
    free(t);
}

static void *scratch_create(const void *context) {
    const job *j = context;
    size_t n = j->n_cols, n_row = (4 + j->k) * n;
    scratch *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->floats = malloc(GROUP * n_row * sizeof *t->floats);
    t->orders = malloc(GROUP * n * sizeof *t->orders);
    t->bytes = malloc(GROUP * 2 * n);
    if (!t->floats || !t->orders || !t->bytes) {
        scratch_free(t);
        return NULL;
    }
    for (uint32_t r = 0; r < GROUP; r++) {
        float *floats = t->floats + r * n_row;
        uint8_t *bytes = t->bytes + r * 2 * n;
        t->rows[r].now = (fit){.indices = bytes, .error = floats, .gradient = floats + n};
        t->rows[r].other = (fit){.indices = bytes + n, .error = floats + 2 * n, .gradient = floats + 3 * n};
        t->rows[r].sums = floats + 4 * n;
        t->rows[r].order = t->orders + r * n;
    }
    return t;
}

int sq_refine_rows(const float *values, const float *hessian, const float *factor, const uint8_t *kept,
                   uint32_t n_rows, uint32_t n_cols, uint32_t k, uint32_t n_threads, uint16_t *table,
                   uint8_t *indices, double *objective) {
    static const sq_row_work work = {GROUP, scratch_create, scratch_free, refine_group};
    job j = {values, hessian, factor, kept, n_cols, k, table, indices, objective};
    return sq_rows_run(&work, &j, n_rows, n_threads);
}
