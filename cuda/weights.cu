/* Weights to the device: laid out twice by the same functions, first to count bytes, then to fill them. */
#include "weights.h"

#include "port.cuh"

#include <stdlib.h>

#include <new>
#include <vector>

/* ---- packing ----------------------------------------------------------------------------------- */

namespace {

enum { PACK_THREADS = 256 };

__global__ void __launch_bounds__(PACK_THREADS)
    pack_kernel(sq_pack_source source, uint32_t *words, uint32_t n_spans, uint32_t first_tile,
                size_t n_words) {
    uint32_t per_span = sq_span_vectors(source.bits) * SQ_LANES * 4;
    size_t i = (size_t)blockIdx.x * PACK_THREADS + threadIdx.x;
    next_kernel_start();
    previous_kernel_wait();
    if (i >= n_words)
        return;
    uint32_t c = i % 4, lane = i / 4 % SQ_LANES, vector = i / (4 * SQ_LANES) % sq_span_vectors(source.bits);
    uint32_t span = i / per_span % n_spans, tile = first_tile + (uint32_t)(i / per_span / n_spans);
    words[(size_t)first_tile * n_spans * per_span + i] |= sq_pack_word(&source, tile, span, vector, lane, c);
}

} // namespace

void gpu_pack(gpu_launch *l, const sq_pack_source *source, const gpu_matrix *w, uint32_t first_tile,
              uint32_t n_tiles) {
    size_t n_words = sq_vector_at(w->bits, w->n_spans, n_tiles, 0, 0) * 4;
    gpu_run(l, pack_kernel, dim3((unsigned)((n_words + PACK_THREADS - 1) / PACK_THREADS)), dim3(PACK_THREADS),
            0, *source, (uint32_t *)w->codes, w->n_spans, first_tile, n_words);
}

/* ---- placing ----------------------------------------------------------------------------------- */

bool gpu_interleaves(const sq_model *m, const sq_layer *l) {
    bool same = !m->arch->plain_ffn && l->gate.w.type == l->up.w.type;
    for (uint32_t e = 0; l->experts && e < m->hparams.n_experts; e++)
        same &= l->experts[e].gate.w.type == l->experts[e].up.w.type;
    return same;
}

namespace {

enum { STAGING_BYTES = 64 << 20 };

/* Hands out pieces of the device's memory; without any it only counts. */
struct placer {
    gpu_launch launch;
    uint8_t *base, *staging; /* NULL while counting */
    size_t used, staged;     /* the most that lies in the staging buffer at once */

    template <typename T> T *take(size_t n) {
        T *piece = base ? (T *)(base + used) : nullptr;
        used += gpu_round_up(n * sizeof(T), 256);
        return piece;
    }
    /* From the host's memory, which may change afterwards. */
    void copy(void *to, const void *from, size_t n_bytes) {
        if (base && n_bytes)
            note(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, launch.stream));
    }
    void copied() {
        if (base)
            note(cudaStreamSynchronize(launch.stream));
    }
    void note(cudaError_t result) {
        if (launch.result == cudaSuccess)
            launch.result = result;
    }
};

uint32_t bits_of(sq_type type) {
    switch (type) {
    case SQ_TYPE_LUT2:
        return 2;
    case SQ_TYPE_LUT3:
        return 3;
    case SQ_TYPE_LUT4:
        return 4;
    case SQ_TYPE_Q8_0:
        return 8;
    default:
        return 16;
    }
}

/* Matrices that make one on the device, side by side or, with 8 rows of each in a tile, interleaved. */
struct sources {
    const sq_linear *linears[3];
    sq_pack_source packs[3];
    uint32_t n, n_tiles;

    sources(const sq_linear *const *from, uint32_t n, bool interleaved) : n(n), n_tiles(0) {
        uint32_t rows = interleaved ? SQ_TILE / 2 : SQ_TILE;
        for (uint32_t i = 0; i < n; i++) {
            const sq_matrix *w = &from[i]->w;
            linears[i] = from[i];
            packs[i] = {w->data, w->row_bytes, bits_of(w->type), w->n_in, 0, w->n_out, n_tiles, 0, rows};
            if (interleaved) {
                packs[i].first_tile = 0;
                packs[i].first_slot = i * rows;
                n_tiles = (w->n_out + rows - 1) / rows;
            } else {
                n_tiles += (w->n_out + rows - 1) / rows;
            }
        }
    }
    /* Calls use(linear, row, tile · 16 + slot) for every row. */
    template <typename F> void each_row(F use) const {
        for (uint32_t tile = 0; tile < n_tiles; tile++)
            for (uint32_t slot = 0; slot < SQ_TILE; slot++)
                for (uint32_t i = 0; i < n; i++) {
                    uint32_t row = sq_pack_row(&packs[i], tile, slot);
                    if (row != UINT32_MAX)
                        use(linears[i], row, tile * SQ_TILE + slot);
                }
    }
};

/* What the row's entries are divided by: a table of 8 bits then holds integers, which f16 has exactly. Where
 * kept weights are so much larger that f16 would not hold them likewise, it is that times a power of 2. */
float table_scale(const sq_matrix *w, uint32_t row) {
    float scale = w->lut8 ? sq_f16_to_f32(w->lut_scale[row]) : 1, largest = 0;
    if (!w->lut8 || scale == 0)
        return 1;
    if (w->rows)
        for (int32_t i = w->rows[row]; i < w->rows[row + 1]; i++)
            largest = max(largest, fabsf(sq_f16_to_f32(w->vals[i])));
    while (largest > fabsf(scale) * 0x1p15f)
        scale *= 2;
    return scale;
}

uint16_t table_entry(const sq_matrix *w, uint32_t bits, uint32_t row, uint32_t code, float scale) {
    if (w->lut)
        return w->lut[((size_t)row << bits) + code];
    return sq_f32_to_f16(sq_lut_entry(w, bits, row, code) / scale);
}

/* Tables by bytes, or Q8_0's scales: gpu_matrix. */
void tables_fill(const sources &s, const gpu_matrix &w, std::vector<uint32_t> &tables) {
    s.each_row([&](const sq_linear *linear, uint32_t row, uint32_t at) {
        if (w.bits == 8) {
            for (uint32_t block = 0; block < w.n_in / 32; block++) {
                const uint8_t *scale = linear->w.data + row * linear->w.row_bytes + (size_t)block * 34;
                uint32_t bits = scale[0] | (uint32_t)scale[1] << 8;
                tables[((size_t)at / SQ_TILE * w.n_spans * 2 + block) * 8 + at % 8] |=
                    at % SQ_TILE < 8 ? bits : bits << 16;
            }
            return;
        }
        uint32_t n = 1u << w.bits;
        uint8_t *bytes = (uint8_t *)&tables[(size_t)at * sq_table_words(w.bits)];
        float scale = table_scale(&linear->w, row);
        for (uint32_t i = 0; i < n; i++) {
            uint16_t entry = table_entry(&linear->w, w.bits, row, i, scale);
            bytes[i] = (uint8_t)entry;
            bytes[n + i] = (uint8_t)(entry >> 8);
        }
    });
}

void sparse_fill(const sources &s, std::vector<uint32_t> &first, std::vector<uint32_t> &sparse) {
    uint32_t filled = 0; /* slots whose beginning is known */
    s.each_row([&](const sq_linear *linear, uint32_t row, uint32_t at) {
        while (filled <= at)
            first[filled++] = (uint32_t)sparse.size();
        const sq_matrix *w = &linear->w;
        if (w->rows)
            for (uint32_t i = (uint32_t)w->rows[row]; i < (uint32_t)w->rows[row + 1]; i++)
                sparse.push_back(sq_column(w, i) | (uint32_t)w->vals[i] << 16);
    });
    while (filled < first.size())
        first[filled++] = (uint32_t)sparse.size();
}

/* Rows of the file through the staging buffer, and from there packed. */
void codes_fill(placer *p, const sq_pack_source &source, const gpu_matrix &w) {
    uint32_t at_once =
        (uint32_t)(STAGING_BYTES / source.row_bytes) / source.rows_per_tile * source.rows_per_tile;
    for (uint32_t row = 0; row < source.n_rows; row += at_once) {
        sq_pack_source part = source;
        part.data = p->staging;
        part.row0 = row;
        part.n_rows = min(at_once, source.n_rows - row);
        p->copy(p->staging, source.data + row * source.row_bytes, part.n_rows * source.row_bytes);
        uint32_t first_tile = source.first_tile + row / source.rows_per_tile;
        gpu_pack(&p->launch, &part, &w, first_tile,
                 (part.n_rows + source.rows_per_tile - 1) / source.rows_per_tile);
    }
}

void matrix_place(placer *p, const sq_linear *const *linears, uint32_t n, bool interleaved, gpu_matrix *w) {
    sources s(linears, n, interleaved);
    uint32_t n_in = linears[0]->w.n_in, n_slots = s.n_tiles * SQ_TILE;
    uint64_t n_sparse = 0;
    bool biased = false, scaled = false;
    for (uint32_t i = 0; i < n; i++) {
        n_sparse += linears[i]->w.n_sparse;
        biased |= linears[i]->bias != nullptr;
        scaled |= linears[i]->w.lut8 != nullptr;
    }
    *w = {};
    w->bits = bits_of(linears[0]->w.type);
    w->n_tiles = s.n_tiles;
    w->n_in = n_in;
    w->n_spans = sq_n_spans(w->bits, n_in);
    for (uint32_t i = 0; i < n; i++)
        p->staged = max(p->staged, min((size_t)STAGING_BYTES, linears[i]->w.n_out * linears[i]->w.row_bytes));
    size_t n_vectors = sq_vector_at(w->bits, w->n_spans, w->n_tiles, 0, 0);
    size_t n_tables = w->bits == 8   ? (size_t)w->n_tiles * w->n_spans * 2 * 8
                      : w->bits < 16 ? (size_t)n_slots * sq_table_words(w->bits)
                                     : 0;
    w->codes = p->take<uint4>(n_vectors);
    w->tables = p->take<uint32_t>(n_tables);
    w->scales = scaled ? p->take<float>(n_slots) : nullptr;
    w->sparse_first = n_sparse ? p->take<uint32_t>(n_slots + 1) : nullptr;
    w->sparse = n_sparse ? p->take<uint32_t>(n_sparse) : nullptr;
    w->bias = biased ? p->take<float>(n_slots) : nullptr;
    if (!p->base)
        return;
    p->note(cudaMemsetAsync(w->codes, 0, n_vectors * sizeof *w->codes, p->launch.stream));
    for (uint32_t i = 0; i < n; i++)
        codes_fill(p, s.packs[i], *w);
    std::vector<uint32_t> tables(n_tables), first(n_sparse ? n_slots + 1 : 0), sparse;
    std::vector<float> bias(biased ? n_slots : 0), scales(scaled ? n_slots : 0, 1);
    if (n_tables)
        tables_fill(s, *w, tables);
    if (n_sparse) {
        sparse.reserve(n_sparse);
        sparse_fill(s, first, sparse);
    }
    if (biased)
        s.each_row([&](const sq_linear *linear, uint32_t row, uint32_t at) {
            bias[at] = linear->bias ? linear->bias[row] : 0;
        });
    p->copy(w->tables, tables.data(), tables.size() * sizeof tables[0]);
    if (scaled)
        s.each_row([&](const sq_linear *linear, uint32_t row, uint32_t at) {
            scales[at] = table_scale(&linear->w, row);
        });
    p->copy(w->scales, scales.data(), scales.size() * sizeof scales[0]);
    p->copy(w->sparse_first, first.data(), first.size() * sizeof first[0]);
    p->copy(w->sparse, sparse.data(), sparse.size() * sizeof sparse[0]);
    p->copy(w->bias, bias.data(), bias.size() * sizeof bias[0]);
    p->copied();
}

void linear_place(placer *p, const sq_linear *linear, gpu_matrix *w) {
    matrix_place(p, &linear, 1, false, w);
}

/* Padded by zeros to whole tiles: what multiplies padded rows. */
const float *vector_place(placer *p, const float *from, uint32_t n) {
    if (!from)
        return nullptr;
    float *to = p->take<float>(gpu_padded(n));
    if (p->base) {
        std::vector<float> padded(gpu_padded(n));
        std::copy(from, from + n, padded.begin());
        p->copy(to, padded.data(), padded.size() * sizeof(float));
        p->copied();
    }
    return to;
}

gpu_norm norm_place(placer *p, const sq_norm *norm, uint32_t n) {
    return {vector_place(p, norm->weight, n), vector_place(p, norm->bias, n)};
}

/* place(e, w) places the matrix of expert e. */
template <typename F> void experts_place(placer *p, uint32_t n, F place, gpu_experts *to) {
    gpu_matrix *each = p->take<gpu_matrix>(n);
    to->each = each;
    to->widths = 0;
    for (uint32_t e = 0; e < n; e++) {
        place(e, &to->like);
        to->widths |= 1u << to->like.bits;
        p->copy(each + e, &to->like, sizeof to->like);
        p->copied();
    }
}

void ffn_place(placer *p, const sq_model *m, const sq_layer *from, gpu_layer *to) {
    const sq_linear *gate_up[] = {&from->gate, &from->up};
    if (to->interleaved)
        matrix_place(p, gate_up, 2, true, &to->up);
    else
        linear_place(p, &from->up, &to->up);
    if (!to->interleaved && !m->arch->plain_ffn)
        linear_place(p, &from->gate, &to->gate);
    linear_place(p, &from->down, &to->down);
}

void mixture_place(placer *p, uint32_t n, const sq_layer *from, gpu_layer *to) {
    const sq_expert *experts = from->experts;
    linear_place(p, &from->router, &to->router);
    auto place = [&](const sq_linear sq_expert::*linear, gpu_experts *all) {
        auto one = [&](uint32_t e, gpu_matrix *w) { linear_place(p, &(experts[e].*linear), w); };
        experts_place(p, n, one, all);
    };
    auto both = [&](uint32_t e, gpu_matrix *w) {
        const sq_linear *gate_up[] = {&experts[e].gate, &experts[e].up};
        matrix_place(p, gate_up, 2, true, w);
    };
    if (to->interleaved) {
        experts_place(p, n, both, &to->expert_up);
    } else {
        place(&sq_expert::up, &to->expert_up);
        place(&sq_expert::gate, &to->expert_gate);
    }
    place(&sq_expert::down, &to->expert_down);
}

void layer_place(placer *p, const sq_model *m, const sq_layer *from, gpu_layer *to) {
    const sq_hparams *h = &m->hparams;
    to->attn_norm = norm_place(p, &from->attn_norm, h->n_embd);
    to->ffn_norm = norm_place(p, &from->ffn_norm, h->n_embd);
    to->attn_out_norm = norm_place(p, &from->attn_out_norm, h->n_embd);
    to->ffn_out_norm = norm_place(p, &from->ffn_out_norm, h->n_embd);
    to->q_norm = vector_place(p, from->q_norm.weight, h->head_dim);
    to->k_norm = vector_place(p, from->k_norm.weight, h->head_dim);
    const sq_linear *qkv[] = {&from->q, &from->k, &from->v};
    bool one_type = from->q.w.type == from->k.w.type && from->k.w.type == from->v.w.type;
    to->n_qkv = one_type ? 1 : 3;
    for (uint32_t i = 0; i < to->n_qkv; i++)
        matrix_place(p, qkv + i, one_type ? 3 : 1, false, &to->qkv[i]);
    linear_place(p, &from->attn_output, &to->output);
    to->interleaved = gpu_interleaves(m, from);
    if (from->experts)
        mixture_place(p, h->n_experts, from, to);
    else
        ffn_place(p, m, from, to);
}

void model_place(placer *p, sq_device *d) {
    const sq_model *m = d->model;
    const sq_hparams *h = &m->hparams;
    linear_place(p, &m->head, &d->head);
    if (h->n_token_embd != h->n_embd)
        linear_place(p, &m->embd_out, &d->embd_out);
    d->output_norm = norm_place(p, &m->output_norm, h->n_embd);
    for (int i = 0; i < SQ_N_ROPES; i++)
        d->frequencies[i] = vector_place(p, m->ropes[i].frequencies, h->n_rot / 2 * 2);
    for (uint32_t i = d->first_layer; i < h->n_layers; i++)
        layer_place(p, m, &m->layers[i], &d->layers[i]);
    if (d->first_layer)
        return;
    if (m->tied)
        d->embedding = d->head;
    else
        linear_place(p, &m->embedding, &d->embedding);
    if (h->n_token_embd != h->n_embd)
        linear_place(p, &m->embd_in, &d->embd_in);
    if (m->arch->learned_positions)
        linear_place(p, &m->positions, &d->positions);
}

} // namespace

/* Allocates what `place` asks for, and lets it fill it. */
template <typename F>
static sq_status place_all(const gpu_card *card, cudaStream_t stream, F place, void **memory,
                           sq_error *error) {
    placer p = {};
    place(&p);
    uint64_t n_bytes = p.used, n_staged = p.staged;
    p = {};
    p.launch.card = card;
    p.launch.stream = stream;
    *memory = nullptr;
    sq_status status = SQ_OK;
    if (cudaMalloc((uint8_t **)memory, n_bytes) || cudaMalloc(&p.staging, n_staged)) {
        cudaGetLastError();
        status = gpu_fail(error, SQ_ERROR_MEMORY,
                          "%.2f GB of GPU memory for the weights are not to be had; put fewer layers there",
                          (double)n_bytes * 1e-9);
    }
    if (!status) {
        p.base = (uint8_t *)*memory;
        try {
            place(&p);
        } catch (const std::bad_alloc &) {
            status = gpu_fail(error, SQ_ERROR_MEMORY, "no memory to prepare weights for the GPU");
        }
        p.copied();
    }
    if (!status)
        status = gpu_check(p.launch.result, "uploading weights", error);
    cudaFree(p.staging);
    if (status) {
        cudaFree(*memory);
        *memory = nullptr;
    }
    return status;
}

sq_status gpu_matrix_upload(const gpu_card *card, cudaStream_t stream, const sq_linear *const *linears,
                            uint32_t n, bool interleaved, gpu_matrix *w, void **memory, sq_error *error) {
    auto place = [&](placer *p) { matrix_place(p, linears, n, interleaved, w); };
    return place_all(card, stream, place, memory, error);
}

static sq_status layers_create(sq_device *d, sq_error *error) {
    d->layers = (gpu_layer *)calloc(d->model->hparams.n_layers, sizeof *d->layers);
    return d->layers
               ? SQ_OK
               : gpu_fail(error, SQ_ERROR_MEMORY, "no memory for %u layers", d->model->hparams.n_layers);
}

uint64_t gpu_weights_bytes(const sq_model *model, uint32_t first_layer) {
    placer counter = {};
    sq_device d = {};
    d.model = model;
    d.first_layer = first_layer;
    if (layers_create(&d, nullptr))
        return UINT64_MAX; /* more than any device has */
    model_place(&counter, &d);
    free(d.layers);
    return counter.used;
}

sq_status gpu_weights_upload(sq_device *d, sq_error *error) {
    sq_status status = layers_create(d, error);
    auto place = [&](placer *p) { model_place(p, d); };
    return status ? status : place_all(&d->card, d->stream, place, &d->memory, error);
}

void gpu_weights_free(sq_device *d) {
    cudaFree(d->memory);
    free(d->layers);
}
