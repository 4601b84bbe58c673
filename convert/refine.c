#include "refine.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "f16.h"
#include "rows.h"

/* GROUP rows share each part of H that is read; TILE_ROWS of them share it in registers. Of the columns of a
 * tile the errors are settled before the other columns hear of them. */
enum { GROUP = 24, TILE_ROWS = 6, COLUMNS = SQ_REFINE_TILE_ROWS, WIDTH = SQ_REFINE_TILE_COLUMNS };
enum { MAX_ENTRIES = 16, SUM_ROWS = 4, PANELS = COLUMNS / WIDTH };

enum { ROUNDINGS = 3, DESCENTS = 3, SWEEPS = 4, TABLE_SWEEPS = 2 };
/* Of an entry's code; with the largest scale the largest code is still a number that f16 has. */
enum { LARGEST_CODE = 127 };
static const float largest_scale = 515.5F;

_Static_assert(SQ_REFINE_OBJECTIVES == 1 + 2 * (ROUNDINGS + DESCENTS), "one before, two after each");
_Static_assert(GROUP % TILE_ROWS == 0 && GROUP % SUM_ROWS == 0 && COLUMNS % WIDTH == 0, "tiles are whole");

/* Element by element, without a sum across them: vectors of any width give the same. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

typedef float lanes __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));

typedef struct job {
    const float *values, *hessian, *factor;
    const uint8_t *kept;
    uint32_t n_cols, k;
    float *table;
    uint8_t *indices;
    double *objective;
} job;

/* Indices and what they lead to; [n_cols], up to the next multiple of COLUMNS errors are 0. */
typedef struct fit {
    uint8_t *indices;
    float *error;    /* P c - w, 0 where kept */
    float *gradient; /* H error; while a row is rounded: Mᵀ error, of the columns settled so far */
    double objective;
} fit;

/* One row while it is refined. */
typedef struct row {
    const float *values;
    const uint8_t *kept;      /* or NULL */
    float table[MAX_ENTRIES]; /* always numbers that 8 bits give */
    lanes middles;            /* between its entries; past the last one there is nothing */
    fit now, other;           /* the best so far, and room for an attempt */
    bool changed;             /* whether the indices are others than the table was fitted to */
    uint8_t *slots;           /* [n_cols, padded] indices; MAX_ENTRIES of columns without an error */
    uint32_t n_moves;         /* of a block of columns those whose error has changed, */
    uint32_t moved[COLUMNS];  /* which they are in the block, */
    float moves[COLUMNS];     /* and by how much */
} row;

typedef struct scratch {
    row rows[GROUP];
    float *floats;  /* what the rows' pointers point to */
    uint8_t *bytes; /* likewise */
} scratch;

static bool is_kept(const row *r, uint32_t i) {
    return r->kept && r->kept[i];
}

static uint32_t n_blocks(uint32_t n) {
    return (n + COLUMNS - 1) / COLUMNS;
}

/* Of [COLUMNS] rows of a matrix those columns that make panel `panel`. */
static inline const lanes *tile_at(const float *matrix, uint32_t n, uint32_t block, uint32_t panel) {
    return (const lanes *)matrix + ((size_t)block * n_blocks(n) * PANELS + panel) * COLUMNS;
}

/* ---- what the steps need ----------------------------------------------------------------------- */

/* Entries ascend: the number of midpoints below x. */
static inline uint8_t nearest(const lanes *middles, float x) {
    uint32_t e = 0;
    for (uint32_t i = 0; i < MAX_ENTRIES; i++)
        e += x > (*middles)[i];
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

/* gradient[j] += Σ error · matrix[i, j] over the columns i of a block, for j from panel `from` on, of a whole
 * group: places without a row are computed along with the others. */
WIDE static void errors_spread(const float *matrix, uint32_t n, uint32_t block, uint32_t from, row *rows) {
    for (uint32_t p = from; p < n_blocks(n) * PANELS; p++) {
        const lanes *tile = tile_at(matrix, n, block, p);
        for (row *r = rows; r < rows + GROUP; r += TILE_ROWS) {
            lanes sums[TILE_ROWS];
            const float *errors[TILE_ROWS];
            for (uint32_t t = 0; t < TILE_ROWS; t++) {
                sums[t] = *(lanes *)(r[t].now.gradient + WIDTH * p);
                errors[t] = r[t].now.error + COLUMNS * block;
            }
            for (uint32_t i = 0; i < COLUMNS; i++)
                for (uint32_t t = 0; t < TILE_ROWS; t++)
                    sums[t] += errors[t][i] * tile[i];
            for (uint32_t t = 0; t < TILE_ROWS; t++)
                *(lanes *)(r[t].now.gradient + WIDTH * p) = sums[t];
        }
    }
}

/* gradient[j] += Σ move · matrix[i, j] over the moves of each row in a block. */
WIDE static void moves_spread(const float *matrix, uint32_t n, uint32_t block, row *rows, uint32_t n_rows) {
    for (uint32_t p = 0; p < n_blocks(n) * PANELS; p++) {
        const lanes *tile = tile_at(matrix, n, block, p);
        for (row *r = rows; r < rows + n_rows; r++) {
            lanes *gradient = (lanes *)(r->now.gradient + WIDTH * p), sum = *gradient;
            for (uint32_t m = 0; m < r->n_moves; m++)
                sum += r->moves[m] * tile[r->moved[m]];
            *gradient = sum;
        }
    }
}

static void gradient_clear(row *r, uint32_t n) {
    memset(r->now.gradient, 0, n_blocks(n) * COLUMNS * sizeof(float));
}

static void gradients_fill(const float *hessian, uint32_t n, row *rows, uint32_t n_rows) {
    for (uint32_t r = 0; r < n_rows; r++)
        gradient_clear(&rows[r], n);
    for (uint32_t block = 0; block < n_blocks(n); block++)
        errors_spread(hessian, n, block, 0, rows);
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

/* PᵀHP of a row, [k, k]; the lower half is that of its mirror image. */
typedef double products[MAX_ENTRIES][MAX_ENTRIES];

static void slots_fill(row *r, uint32_t n) {
    memset(r->slots, MAX_ENTRIES, n_blocks(n) * COLUMNS);
    for (uint32_t i = 0; i < n; i++)
        if (!is_kept(r, i))
            r->slots[i] = r->now.indices[i];
}

/* sums[e] += the rows of a tile whose index is e, of SUM_ROWS rows. */
WIDE static void tile_sum(const lanes *tile, uint32_t block, const row *rows,
                          lanes (*sums)[MAX_ENTRIES + 1]) {
    const uint8_t *slots[SUM_ROWS];
    for (uint32_t r = 0; r < SUM_ROWS; r++)
        slots[r] = rows[r].slots + COLUMNS * block;
    for (uint32_t i = 0; i < COLUMNS; i++)
        for (uint32_t r = 0; r < SUM_ROWS; r++)
            sums[r][slots[r][i]] += tile[i];
}

/* PᵀHP of SUM_ROWS rows: what a panel of H contributes. H is symmetric: what lies above its diagonal tiles
 * counts twice, what lies below is not looked at. */
static void panel_add(const float *hessian, uint32_t n, uint32_t k, uint32_t panel, const row *rows,
                      products *out) {
    lanes sums[SUM_ROWS][MAX_ENTRIES + 1];
    uint32_t diagonal = panel / PANELS;
    memset(sums, 0, sizeof sums);
    for (uint32_t block = 0; block < diagonal; block++)
        tile_sum(tile_at(hessian, n, block, panel), block, rows, sums);
    for (uint32_t r = 0; r < SUM_ROWS; r++)
        for (uint32_t e = 0; e < k; e++)
            sums[r][e] *= 2;
    tile_sum(tile_at(hessian, n, diagonal, panel), diagonal, rows, sums);
    for (uint32_t r = 0; r < SUM_ROWS; r++)
        for (uint32_t i = 0; i < WIDTH; i++) {
            uint32_t slot = rows[r].slots[WIDTH * panel + i];
            for (uint32_t e = 0; e < k && slot < k; e++)
                out[r][slot][e] += (double)sums[r][e][i];
        }
}

/* By how much the best table differs: (PᵀHP + εI) x = -Pᵀ gradient. With ε an entry that nothing uses stays.
 */
static bool table_step(const products a, const double *slope, uint32_t k, double *step) {
    products damped;
    double trace = 0;
    for (uint32_t e = 0; e < k; e++) {
        step[e] = -slope[e];
        trace += a[e][e];
        for (uint32_t o = 0; o < k; o++)
            damped[e][o] = (a[e][o] + a[o][e]) / 2;
    }
    for (uint32_t e = 0; e < k; e++)
        damped[e][e] += 1e-7 * trace / k;
    return trace > 0 && solve(damped, step, k);
}

/* What the objective gains by a step of the table. */
static double step_gain(const products a, const double *slope, uint32_t k, const double *step) {
    double gain = 0;
    for (uint32_t e = 0; e < k; e++) {
        gain -= 2 * slope[e] * step[e];
        for (uint32_t o = 0; o < k; o++)
            gain -= step[e] * a[e][o] * step[o];
    }
    return gain;
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

/* The least scale, in f16, at which codes reach every entry. */
static float table_scale(const float *table, uint32_t k) {
    float largest = 0;
    for (uint32_t e = 0; e < k; e++)
        largest = fmaxf(largest, fabsf(table[e]));
    uint16_t scale = sq_f16_encode((double)(largest / LARGEST_CODE));
    if (LARGEST_CODE * sq_f16_decode(scale) < largest)
        scale++;
    return fminf(sq_f16_decode(scale), largest_scale);
}

/* The entry nearest to x. */
static float entry_round(float scale, double x) {
    double code = scale > 0 ? nearbyint(x / (double)scale) : 0;
    code = fmin(fmax(code, -LARGEST_CODE), LARGEST_CODE);
    return (float)((double)scale * code);
}

static void table_round(float *table, uint32_t k) {
    float scale = table_scale(table, k);
    for (uint32_t e = 0; e < k; e++)
        table[e] = entry_round(scale, (double)table[e]);
}

/* Rounds `table`, each entry in turn to what costs least beside the others: at now, the slope is known. */
static void table_round_together(const products a, const double *slope, const float *now, float *table,
                                 uint32_t k) {
    float scale = table_scale(table, k);
    table_round(table, k);
    for (uint32_t e = 0; e < TABLE_SWEEPS * k; e++) {
        const uint32_t at = e % k;
        double pull = slope[at];
        for (uint32_t o = 0; o < k; o++)
            pull += (a[at][o] + a[o][at]) / 2 * ((double)table[o] - (double)now[o]);
        if (a[at][at] > 0)
            table[at] = entry_round(scale, (double)table[at] - pull / a[at][at]);
    }
}

/* Takes the best table, rounded, if that is better than the one there is. The gradient, which has to be up to
 * date, no longer is then. */
static void table_fit(row *r, uint32_t n, uint32_t k, const products a) {
    double slope[MAX_ENTRIES] = {0}, step[MAX_ENTRIES]; /* Pᵀ gradient */
    for (uint32_t i = 0; i < n; i++)
        if (!is_kept(r, i))
            slope[r->now.indices[i]] += (double)r->now.gradient[i];
    if (!table_step(a, slope, k, step))
        return;
    float table[MAX_ENTRIES] = {0};
    for (uint32_t e = 0; e < k; e++)
        table[e] = (float)((double)r->table[e] + step[e]);
    table_round_together(a, slope, r->table, table, k);
    for (uint32_t e = 0; e < k; e++)
        step[e] = (double)table[e] - (double)r->table[e];
    double gain = step_gain(a, slope, k, step);
    if (!(gain > 0))
        return;
    memcpy(r->table, table, sizeof table);
    r->now.objective -= gain;
    table_sort(r, n, k);
    middles_fill(r, k);
    errors_fill(r, n);
}

static void tables_fit(const job *j, scratch *s, uint32_t n_rows) {
    products a[GROUP];
    for (uint32_t r = 0; r < n_rows; r++)
        slots_fill(&s->rows[r], j->n_cols);
    memset(a, 0, sizeof a);
    for (uint32_t p = 0; p < n_blocks(j->n_cols) * PANELS; p++)
        for (uint32_t r = 0; r < n_rows; r += SUM_ROWS)
            panel_add(j->hessian, j->n_cols, j->k, p, s->rows + r, a + r);
    for (uint32_t r = 0; r < n_rows; r++) {
        if (s->rows[r].changed)
            table_fit(&s->rows[r], j->n_cols, j->k, (const double (*)[MAX_ENTRIES])a[r]);
        s->rows[r].changed = false;
    }
}

/* ---- indices ----------------------------------------------------------------------------------- */

/* feedback[j] += by · matrix[first + c, first + j] for the columns of a block that lie behind c, at least. */
static inline void block_feed(lanes *feedback, const lanes *const *tiles, uint32_t c, float by) {
    for (uint32_t p = c / WIDTH; p < PANELS; p++)
        feedback[p] += by * tiles[p][c];
}

/* Rounds the columns of a block of a row. */
WIDE static void block_round(const float *factor, uint32_t n, uint32_t block, row *r) {
    const lanes *tiles[PANELS];
    lanes feedback[PANELS];
    uint32_t first = COLUMNS * block, width = n - first < COLUMNS ? n - first : COLUMNS;
    for (uint32_t p = 0; p < PANELS; p++)
        tiles[p] = tile_at(factor, n, block, PANELS * block + p);
    memcpy(feedback, r->now.gradient + first, sizeof feedback);
    for (uint32_t c = 0; c < width; c++) {
        uint32_t i = first + c;
        uint8_t index = nearest(&r->middles, r->values[i] - feedback[c / WIDTH][c % WIDTH]);
        r->now.indices[i] = index;
        r->now.error[i] = is_kept(r, i) ? 0 : r->table[index] - r->values[i];
        block_feed(feedback, tiles, c, r->now.error[i]);
    }
}

static void row_swap(row *r) {
    fit now = r->now;
    r->now = r->other;
    r->other = now;
}

/* Finds indices anew and takes those that are better than what there is. */
static void indices_round(const job *j, row *rows, uint32_t n_rows) {
    uint32_t n = j->n_cols;
    for (uint32_t r = 0; r < n_rows; r++) {
        row_swap(&rows[r]);
        gradient_clear(&rows[r], n);
    }
    for (uint32_t block = 0; block < n_blocks(n); block++) {
        for (uint32_t r = 0; r < n_rows; r++)
            block_round(j->factor, n, block, &rows[r]);
        errors_spread(j->factor, n, block, PANELS * (block + 1), rows);
    }
    gradients_fill(j->hessian, n, rows, n_rows);
    for (uint32_t r = 0; r < n_rows; r++) {
        objective_fill(&rows[r], n);
        if (rows[r].now.objective < rows[r].other.objective)
            rows[r].changed = true;
        else
            row_swap(&rows[r]);
    }
}

/* Descends a row along the columns of a block. */
WIDE static void block_descend(const float *hessian, uint32_t n, uint32_t block, row *r) {
    const lanes *tiles[PANELS];
    lanes gradient[PANELS];
    uint32_t first = COLUMNS * block, width = n - first < COLUMNS ? n - first : COLUMNS;
    r->n_moves = 0;
    for (uint32_t p = 0; p < PANELS; p++)
        tiles[p] = tile_at(hessian, n, block, PANELS * block + p);
    memcpy(gradient, r->now.gradient + first, sizeof gradient);
    for (uint32_t c = 0; c < width; c++) {
        uint32_t i = first + c;
        float curvature = tiles[c / WIDTH][c][c % WIDTH];
        if (is_kept(r, i) || !(curvature > 0))
            continue;
        float here = r->table[r->now.indices[i]];
        float best = here - gradient[c / WIDTH][c % WIDTH] / curvature;
        uint8_t index = nearest(&r->middles, best);
        float entry = r->table[index];
        if (fabsf(entry - best) >= fabsf(here - best))
            continue;
        r->now.indices[i] = index;
        r->now.error[i] = entry - r->values[i];
        r->moved[r->n_moves] = c;
        r->moves[r->n_moves++] = entry - here;
        block_feed(gradient, tiles, c, entry - here);
    }
}

/* Returns whether an index of any row changed. */
static bool sweep(const job *j, row *rows, uint32_t n_rows) {
    bool any = false;
    for (uint32_t block = 0; block < n_blocks(j->n_cols); block++) {
        bool moved = false;
        for (uint32_t r = 0; r < n_rows; r++) {
            block_descend(j->hessian, j->n_cols, block, &rows[r]);
            rows[r].changed |= rows[r].n_moves > 0;
            moved |= rows[r].n_moves > 0;
        }
        if (moved)
            moves_spread(j->hessian, j->n_cols, block, rows, n_rows);
        any |= moved;
    }
    return any;
}

static void indices_descend(const job *j, row *rows, uint32_t n_rows) {
    gradients_fill(j->hessian, j->n_cols, rows, n_rows);
    for (uint32_t i = 0; i < SWEEPS && sweep(j, rows, n_rows); i++) {
    }
    for (uint32_t r = 0; r < n_rows; r++)
        if (rows[r].changed)
            objective_fill(&rows[r], j->n_cols);
}

/* ---- rows -------------------------------------------------------------------------------------- */

static void row_load(const job *j, uint32_t index, row *r) {
    uint32_t n = j->n_cols;
    r->values = j->values + (size_t)index * n;
    r->kept = j->kept ? j->kept + (size_t)index * n : NULL;
    memcpy(r->now.indices, j->indices + (size_t)index * n, n);
    for (uint32_t e = 0; e < j->k; e++)
        r->table[e] = j->table[(size_t)index * j->k + e];
    table_round(r->table, j->k);
    middles_fill(r, j->k);
    errors_fill(r, n);
    r->changed = true;
}

static void row_store(const job *j, uint32_t index, const row *r) {
    uint8_t *indices = j->indices + (size_t)index * j->n_cols;
    for (uint32_t e = 0; e < j->k; e++)
        j->table[(size_t)index * j->k + e] = r->table[e];
    for (uint32_t i = 0; i < j->n_cols; i++)
        indices[i] = is_kept(r, i) ? nearest(&r->middles, r->values[i]) : r->now.indices[i];
}

static void objectives_note(const job *j, uint32_t row0, const row *rows, uint32_t n_rows, uint32_t step) {
    for (uint32_t r = 0; r < n_rows; r++)
        j->objective[(size_t)(row0 + r) * SQ_REFINE_OBJECTIVES + step] = rows[r].now.objective;
}

static void refine_group(const void *context, void *scratch_of_thread, uint32_t row0, uint32_t row1) {
    const job *j = context;
    scratch *s = scratch_of_thread;
    row *rows = s->rows;
    uint32_t n = j->n_cols, n_rows = row1 - row0, step = 0;
    for (uint32_t r = 0; r < n_rows; r++)
        row_load(j, row0 + r, &rows[r]);
    gradients_fill(j->hessian, n, rows, n_rows);
    for (uint32_t r = 0; r < n_rows; r++)
        objective_fill(&rows[r], n);
    objectives_note(j, row0, rows, n_rows, step++);
    for (uint32_t round = 0; round < ROUNDINGS + DESCENTS; round++) {
        if (round < ROUNDINGS)
            indices_round(j, rows, n_rows);
        else
            indices_descend(j, rows, n_rows);
        objectives_note(j, row0, rows, n_rows, step++);
        tables_fit(j, s, n_rows);
        objectives_note(j, row0, rows, n_rows, step++);
    }
    for (uint32_t r = 0; r < n_rows; r++)
        row_store(j, row0 + r, &rows[r]);
}

static void scratch_free(void *scratch_of_thread) {
    scratch *s = scratch_of_thread;
    free(s->floats);
    free(s->bytes);
    free(s);
}

static void *scratch_create(const void *context) {
    const job *j = context;
    size_t n = n_blocks(j->n_cols) * COLUMNS;
    scratch *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->floats = calloc(GROUP * 4 * n, sizeof *s->floats);
    s->bytes = calloc(GROUP * 3, n);
    if (!s->floats || !s->bytes) {
        scratch_free(s);
        return NULL;
    }
    for (uint32_t r = 0; r < GROUP; r++) {
        float *floats = s->floats + r * 4 * n;
        uint8_t *bytes = s->bytes + r * 3 * n;
        s->rows[r].now = (fit){.indices = bytes, .error = floats, .gradient = floats + n};
        s->rows[r].other = (fit){.indices = bytes + n, .error = floats + 2 * n, .gradient = floats + 3 * n};
        s->rows[r].slots = bytes + 2 * n;
    }
    return s;
}

int sq_refine_rows(const float *values, const float *hessian, const float *factor, const uint8_t *kept,
                   uint32_t n_rows, uint32_t n_cols, uint32_t k, uint32_t n_threads, float *table,
                   uint8_t *indices, double *objective) {
    static const sq_row_work work = {GROUP, scratch_create, scratch_free, refine_group};
    job j = {values, hessian, factor, kept, n_cols, k, table, indices, objective};
    return sq_rows_run(&work, &j, n_rows, n_threads);
}
