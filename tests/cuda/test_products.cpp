/* Products of every width, size, number of tokens and use against the scalar definition of the weights, with
 * sums in double precision. */
#include <algorithm>
#include <vector>

#include "device_data.h"
#include "variants.h"
#include "weights.h"

extern "C" {
extern const sq_kernels sq_kernels_scalar;
extern const sq_type_traits sq_types[SQ_N_TYPES];
#include "experts.h"
}

static uint64_t seed = 88172645463325252u;
static gpu_card card;

static uint32_t random_below(uint32_t n) {
    return (uint32_t)((check_random(&seed) >> 32) % n);
}

/* ---- matrices ---------------------------------------------------------------------------------- */

/* A random one: any bits are codes, tables are small numbers, of 8 bits where `narrow`. */
struct example {
    sq_linear linear = {};
    std::vector<uint8_t> data;
    std::vector<uint16_t> lut, lut_scale, cols, vals;
    std::vector<int8_t> lut8;
    std::vector<int32_t> rows;
    std::vector<float> bias, weights; /* [n_out, n_in] */

    example(sq_type type, uint32_t n_out, uint32_t n_in, bool sparse, bool biased, bool narrow = false) {
        sq_matrix *w = &linear.w;
        w->type = type;
        w->n_out = n_out;
        w->n_in = n_in;
        w->row_bytes = sq_types[type].row_bytes(n_in);
        data.resize(n_out * w->row_bytes);
        for (uint8_t &byte : data)
            byte = (uint8_t)random_below(256);
        for (size_t i = 0; type == SQ_TYPE_F16 && i < data.size(); i += 2)
            put_f16(&data[i]);
        for (size_t i = 0; type == SQ_TYPE_Q8_0 && i < data.size(); i += 34)
            data[i + 1] = (uint8_t)(0x18 + random_below(8)); /* scales of 2^-9 to 2^-8 */
        if (sq_types[type].bits)
            tables((size_t)n_out << sq_types[type].bits, narrow);
        if (sparse)
            keep();
        bias.resize(biased ? n_out : 0);
        for (float &b : bias)
            b = check_random_float(&seed, 1);
        w->data = data.data();
        linear.bias = biased ? bias.data() : nullptr;
        std::vector<float> row(sq_pad(n_in));
        for (uint32_t r = 0; r < n_out; r++) {
            sq_kernels_scalar.types[type].expand_row(w, r, row.data());
            weights.insert(weights.end(), row.begin(), row.begin() + n_in);
        }
    }
    /* The scale of row 1, if there is one, is 0. */
    void tables(size_t n, bool narrow) {
        sq_matrix *w = &linear.w;
        lut.resize(narrow ? 0 : n);
        for (uint16_t &entry : lut)
            put_f16((uint8_t *)&entry);
        lut8.resize(narrow ? n : 0);
        for (int8_t &code : lut8)
            code = (int8_t)random_below(256);
        lut_scale.resize(narrow ? w->n_out : 0);
        for (uint32_t r = 0; r < lut_scale.size(); r++)
            lut_scale[r] = sq_f32_to_f16(r == 1 ? 0 : check_random_float(&seed, 0x1p-9f));
        w->lut = narrow ? nullptr : lut.data();
        w->lut8 = narrow ? lut8.data() : nullptr;
        w->lut_scale = narrow ? lut_scale.data() : nullptr;
    }
    static void put_f16(uint8_t *to) {
        uint16_t bits = sq_f32_to_f16(check_random_float(&seed, 0.25f));
        memcpy(to, &bits, 2);
    }
    /* Rows keep 0, 3, 17 and 70 weights by turns, first and last column among them. */
    void keep() {
        static const uint32_t counts[] = {3, 17, 70, 0};
        sq_matrix *w = &linear.w;
        for (uint32_t r = 0; r < w->n_out; r++) {
            rows.push_back((int32_t)cols.size());
            uint32_t n = std::min(counts[r % 4], w->n_in);
            for (uint32_t i = 0; i < n; i++) {
                cols.push_back((uint16_t)(n > 1 ? (uint64_t)i * (w->n_in - 1) / (n - 1) : 0));
                vals.push_back(sq_f32_to_f16(check_random_float(&seed, 1)));
            }
        }
        rows.push_back((int32_t)cols.size());
        w->n_sparse = (uint32_t)cols.size();
        w->rows = rows.data();
        w->cols16 = cols.data();
        w->vals = vals.data();
    }
    /* A row's product with x; `size`, where not NULL, receives that of what is added up. */
    double product(uint32_t row, const float *x, double *size = nullptr) const {
        double sum = bias.empty() ? 0 : bias[row], absolute = fabs(sum);
        for (uint32_t i = 0; i < linear.w.n_in; i++) {
            double term = (double)weights[(size_t)row * linear.w.n_in + i] * x[i];
            sum += term;
            absolute += fabs(term);
        }
        if (size)
            *size = absolute;
        return sum;
    }
};

/* ---- products --------------------------------------------------------------------------------- */

static std::vector<float> random_activations(uint32_t n_tokens, uint32_t n_in, operand_data *operand) {
    std::vector<float> x;
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t i = 0; i < n_in; i++) {
            x.push_back(check_random_float(&seed, 3) * (random_below(50) ? 1 : 100));
            operand->set(t, i, x.back());
        }
    return x;
}

/* What rounding may change in each of the terms of a sum: of more than 8 tokens activations, and weights that
 * are sums or have a scale, keep 11 bits. */
static double tolerance(uint32_t n_tokens) {
    return n_tokens > GPU_FEW_TOKENS ? 1e-3 : 1e-6;
}

static void launch(const gpu_product *p, gpu_shape shape) {
    gpu_launch l = {&card, stream, cudaSuccess};
    if (shape.n_warps)
        gpu_gemv(&l, p, shape);
    else
        gpu_multiply(&l, p, false);
    CHECK_EQ(l.result, cudaSuccess);
}

/* ---- tests ------------------------------------------------------------------------------------- */

static void check_store(const example &e, uint32_t n_tokens, gpu_shape shape) {
    const sq_matrix *m = &e.linear.w;
    const sq_linear *linears[] = {&e.linear};
    gpu_matrix w;
    void *memory;
    sq_error error;
    operand_data in(n_tokens, m->n_in);
    std::vector<float> x = random_activations(n_tokens, m->n_in, &in);
    if (!CHECK_OK(gpu_matrix_upload(&card, stream, linears, 1, false, &w, &memory, &error), &error))
        return;
    on_device<uint16_t> operand(in.parts);
    on_device<float> out(std::vector<float>((size_t)n_tokens * gpu_rows(&w), NAN));
    gpu_product p = {};
    p.w = w;
    p.in = {operand.data, in.stride};
    p.n_tokens = n_tokens;
    p.use = GPU_STORE;
    p.out = out.data;
    p.out_stride = gpu_rows(&w);
    launch(&p, shape);
    std::vector<float> found = out.read();
    order_reverse(true);
    launch(&p, shape);
    order_reverse(false);
    std::vector<float> again = out.read();
    CHECK_SAY(memcmp(found.data(), again.data(), found.size() * sizeof(float)) == 0, "a second run differs");
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t r = 0; r < gpu_rows(&w); r++) {
            double size = 0, expected = r < m->n_out ? e.product(r, &x[(size_t)t * m->n_in], &size) : 0;
            double y = found[(size_t)t * gpu_rows(&w) + r];
            CHECK_SAY(fabs(y - expected) <= tolerance(n_tokens) * (size + 0.5),
                      "%s [%u, %u], %u tokens: row %u of token %u: found %g, expected %g",
                      sq_types[m->type].name, m->n_out, m->n_in, n_tokens, r, t, y, expected);
        }
    cudaFree(memory);
}

static const sq_type types[] = {SQ_TYPE_LUT2, SQ_TYPE_LUT3, SQ_TYPE_LUT4, SQ_TYPE_Q8_0, SQ_TYPE_F16};

static void check_tokens(const example &e) {
    for (uint32_t n_tokens : {1u, 3u, 8u, 13u, 17u, 70u})
        if (n_tokens * e.linear.w.n_in * e.linear.w.n_out < 1 << 21)
            check_store(e, n_tokens, {});
}

static void test_sizes(void) {
    for (sq_type type : types)
        for (uint32_t n_out : {1u, 8u, 172u})
            for (uint32_t n_in : {1u, 32u, 172u, 576u, 1376u}) {
                if (type == SQ_TYPE_Q8_0 && n_in % 32)
                    continue;
                bool tables = sq_types[type].bits > 0;
                for (int narrow = 0; narrow <= tables; narrow++)
                    check_tokens(example(type, n_out, n_in, tables, n_out % 4, narrow));
            }
}

/* Activations that do not fit at once, other numbers of warps, the order of blocks. */
static void test_shapes(void) {
    gpu_card whole = card;
    for (sq_type type : types) {
        example e(type, 50, 1376, sq_types[type].bits > 0, true);
        for (uint32_t n_warps : {4u, 8u, 16u})
            for (uint32_t n_tokens : {1u, 5u, 16u}) {
                card = whole;
                check_store(e, n_tokens, {n_warps, 1});
                card.shared_bytes = 36 << 10;
                check_store(e, n_tokens, {n_warps, 1});
            }
    }
    card = whole;
}

/* Rows of gate and up in turns, normed by what the product before left: a chain as in a layer. */
static void check_chain(sq_type type, uint32_t n_tokens) {
    const uint32_t n = 44, n_ff = 100;
    example first(type, n, 96, true, false), gate(type, n_ff, n, true, true),
        up(type, n_ff, n, false, false, sq_types[type].bits > 0);
    const sq_linear *one[] = {&first.linear}, *two[] = {&gate.linear, &up.linear};
    gpu_matrix w1, w2;
    void *memory1, *memory2;
    sq_error error;
    if (!CHECK_OK(gpu_matrix_upload(&card, stream, one, 1, false, &w1, &memory1, &error), &error) ||
        !CHECK_OK(gpu_matrix_upload(&card, stream, two, 2, true, &w2, &memory2, &error), &error))
        return;
    operand_data in(n_tokens, 96), normed(n_tokens, n), gated(n_tokens, n_ff);
    std::vector<float> x = random_activations(n_tokens, 96, &in), residual, weight(gpu_padded(n));
    for (uint32_t i = 0; i < n; i++)
        weight[i] = 1 + check_random_float(&seed, 0.5f);
    for (uint32_t i = 0; i < n_tokens * gpu_padded(n); i++)
        residual.push_back(i % gpu_padded(n) < n ? check_random_float(&seed, 5) : 0);
    on_device<uint16_t> d_in(in.parts), d_normed(normed.parts), d_gated(gated.parts);
    on_device<float> d_x(residual), d_weight(weight), d_squares(std::vector<float>(n_tokens * w1.n_tiles));

    gpu_product p = {};
    p.w = w1;
    p.in = {d_in.data, in.stride};
    p.n_tokens = n_tokens;
    p.use = GPU_ADD;
    p.out = d_x.data;
    p.out_stride = gpu_padded(n);
    p.next = {d_normed.data, normed.stride};
    p.next_weight = d_weight.data;
    p.next_squares = d_squares.data;
    launch(&p, {});
    gpu_product q = {};
    q.w = w2;
    q.in = p.next;
    q.in_squares = {d_squares.data, w1.n_tiles, w1.n_tiles, n, 1e-5f};
    q.n_tokens = n_tokens;
    q.use = GPU_GATED;
    q.activation = SQ_GELU;
    q.next = {d_gated.data, gated.stride};
    launch(&q, {});

    std::vector<float> found = d_x.read(), y(sq_pad(n)), g(n_ff), u(n_ff);
    gated.parts = d_gated.read();
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t i = 0; i < n; i++) {
            float *at = &residual[t * gpu_padded(n) + i];
            double size;
            *at += (float)first.product(i, &x[(size_t)t * 96], &size);
            CHECK_NEAR(found[t * gpu_padded(n) + i], *at, tolerance(n_tokens) * (size + 5));
        }
        sq_kernels_scalar.rms_norm(&residual[t * gpu_padded(n)], weight.data(), 1e-5f, n, y.data());
        double largest = 1;
        for (uint32_t i = 0; i < n_ff; i++) {
            g[i] = (float)gate.product(i, y.data());
            u[i] = (float)up.product(i, y.data());
        }
        sq_kernels_scalar.gated[SQ_GELU](g.data(), u.data(), n_ff, g.data());
        for (float value : g)
            largest = fmax(largest, fabs(value));
        for (uint32_t i = 0; i < n_ff; i++)
            CHECK_NEAR(gated.get(t, i), g[i], tolerance(n_tokens) * 20 * largest);
    }
    cudaFree(memory1);
    cudaFree(memory2);
}

static void test_chain(void) {
    for (sq_type type : {SQ_TYPE_LUT2, SQ_TYPE_LUT3, SQ_TYPE_LUT4})
        for (uint32_t n_tokens : {1u, 2u, 7u, 11u})
            check_chain(type, n_tokens);
}

/* A mixture of experts whose matrices have every width: who is chosen, and what each place gets. */
static void check_experts(uint32_t n_tokens, uint32_t n_used, bool normalised) {
    const uint32_t n_experts = 7, n_in = 96, n_out = 20, stride = 16, n_places = n_tokens * n_used;
    std::vector<example> examples;
    std::vector<gpu_matrix> matrices(n_experts);
    std::vector<void *> memories(n_experts);
    sq_error error;
    for (uint32_t e = 0; e < n_experts; e++) {
        examples.emplace_back(types[e % 5], n_out, n_in, e % 5 < 3, false);
        const sq_linear *linear = &examples[e].linear;
        if (!CHECK_OK(gpu_matrix_upload(&card, stream, &linear, 1, false, &matrices[e], &memories[e], &error),
                      &error))
            return;
    }
    std::vector<float> logits(n_tokens * stride);
    for (float &logit : logits)
        logit = random_below(9) ? (float)random_below(5) : NAN; /* many equal ones */
    operand_data in(n_tokens, n_in);
    std::vector<float> x = random_activations(n_tokens, n_in, &in);
    on_device<float> d_logits(logits), weights(std::vector<float>((size_t)n_places));
    on_device<uint32_t> experts(std::vector<uint32_t>((size_t)n_places)), places(experts.read()),
        tokens(experts.read());
    on_device<gpu_matrix> each(matrices);
    on_device<uint16_t> operand(in.parts);
    gpu_routes r = {n_experts, n_used, experts.data, weights.data, places.data, tokens.data, nullptr};
    on_device<gpu_job> jobs(std::vector<gpu_job>(gpu_n_jobs(&r, n_tokens)));
    on_device<float> out(std::vector<float>((size_t)n_places * gpu_rows(&matrices[0]), NAN));
    r.jobs = jobs.data;
    gpu_launch l = {&card, stream, cudaSuccess};
    gpu_route(&l, d_logits.data, stride, normalised, &r, n_tokens);
    gpu_product p = {};
    p.w = matrices[0];
    p.experts = each.data;
    p.jobs = r.jobs;
    p.n_jobs = gpu_n_jobs(&r, n_tokens);
    p.in_rows = r.tokens;
    p.in = {operand.data, in.stride};
    p.n_tokens = std::min(n_tokens, (uint32_t)GPU_FEW_TOKENS);
    p.use = GPU_STORE;
    p.out = out.data;
    p.out_stride = gpu_rows(&p.w);
    for (uint32_t bits : {2u, 3u, 4u, 8u, 16u}) {
        p.w.bits = bits;
        p.w.n_spans = sq_n_spans(bits, n_in);
        gpu_gemv(&l, &p, {});
    }
    CHECK_EQ(l.result, cudaSuccess);
    std::vector<uint32_t> chosen = experts.read(), at = places.read();
    std::vector<float> shares = weights.read(), found = out.read();
    for (uint32_t t = 0; t < n_tokens; t++) {
        uint32_t expected[7];
        float share[7];
        for (uint32_t e = 0; e < n_experts; e++) /* the definition does not say where NaN ranks */
            logits[t * stride + e] = std::isnan(logits[t * stride + e]) ? -INFINITY : logits[t * stride + e];
        sq_experts_choose(&logits[t * stride], n_experts, n_used, normalised, expected, share);
        for (uint32_t k = 0; k < n_used; k++) {
            uint32_t place = t * n_used + k;
            CHECK_EQ(chosen[place], expected[k]);
            CHECK_NEAR(shares[place], share[k], 1e-6);
            for (uint32_t row = 0; row < n_out; row++) {
                double size, y = examples[expected[k]].product(row, &x[(size_t)t * n_in], &size);
                CHECK_NEAR(found[(size_t)at[place] * p.out_stride + row], y, 1e-6 * (size + 0.5));
            }
        }
    }
    for (void *memory : memories)
        cudaFree(memory);
}

/* Centroids and activations of 16 bits in two signed bytes. */
static void check_planes(uint32_t n_tokens, uint32_t n_out, uint32_t n_in) {
    example e(SQ_TYPE_LUT4, n_out, n_in, false, false);
    const sq_linear *linear = &e.linear;
    gpu_matrix w;
    void *memory;
    sq_error error;
    auto bytes = [](int8_t high, int8_t low) { return 256 * high + low; };
    std::vector<double> centroids;
    for (uint16_t &entry : e.lut) {
        entry = (uint16_t)random_below(65536);
        centroids.push_back(bytes((int8_t)(entry >> 8), (int8_t)entry));
    }
    if (!CHECK_OK(gpu_matrix_upload(&card, stream, &linear, 1, false, &w, &memory, &error), &error))
        return;
    uint32_t stride = (uint32_t)gpu_round_up(n_in, SQ_OPERAND_PAD);
    std::vector<int8_t> in((size_t)2 * n_tokens * stride);
    for (uint32_t column = 0; column < 2 * n_tokens; column++)
        for (uint32_t i = 0; i < n_in; i++)
            in[(size_t)column * stride + i] = (int8_t)random_below(256);
    std::vector<float> scales(gpu_rows(&w), 0x1p-20f), in_scales(n_tokens, 0x1p-14f);
    on_device<int8_t> d_in(in);
    on_device<float> d_scales(scales), d_in_scales(in_scales),
        out(std::vector<float>((size_t)n_tokens * gpu_rows(&w), NAN));
    gpu_launch l = {&card, stream, cudaSuccess};
    variant_planes p = {w, d_scales.data, d_in.data, d_in_scales.data, stride, n_tokens, out.data};
    variant_planes_launch(&l, &p);
    CHECK_EQ(l.result, cudaSuccess);
    std::vector<float> found = out.read();
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t row = 0; row < n_out; row++) {
            double sum = 0, size = 0;
            for (uint32_t i = 0; i < n_in; i++) {
                const int8_t *x = &in[(size_t)2 * t * stride + i];
                uint32_t code = sq_file_code(4, e.data.data() + row * e.linear.w.row_bytes, n_in, i);
                double term = centroids[row * 16 + code] * bytes(x[0], x[stride]) * 0x1p-34;
                sum += term;
                size += fabs(term);
            }
            CHECK_NEAR(found[(size_t)t * gpu_rows(&w) + row], sum, 1e-6 * size);
        }
    cudaFree(memory);
}

static void check_shuffle(uint32_t n_out, uint32_t n_in) {
    std::vector<uint32_t> codes((size_t)n_out * n_in / 8);
    std::vector<float> tables((size_t)n_out * 16), x(n_in);
    for (uint32_t &word : codes)
        word = (uint32_t)(check_random(&seed) >> 16);
    for (std::vector<float> *values : {&tables, &x})
        for (float &value : *values)
            value = check_random_float(&seed, 1);
    on_device<uint32_t> d_codes(codes);
    on_device<float> d_tables(tables), d_x(x), out(std::vector<float>(n_out, NAN));
    gpu_launch l = {&card, stream, cudaSuccess};
    variant_shuffle p = {(const uint4 *)d_codes.data, d_tables.data, d_x.data, out.data, n_out, n_in};
    variant_shuffle_launch(&l, &p);
    CHECK_EQ(l.result, cudaSuccess);
    std::vector<float> found = out.read();
    for (uint32_t row = 0; row < n_out; row++) {
        double sum = 0;
        for (uint32_t i = 0; i < n_in; i++) {
            uint32_t lane = i % 32, j = i % 1024 / 32;
            uint32_t word = codes[(((size_t)row * n_in + i / 1024 * 1024) / 32 + lane) * 4 + j / 8];
            sum += (double)tables[row * 16 + (word >> 4 * (j % 8) & 15)] * x[i];
        }
        CHECK_NEAR(found[row], sum, 1e-6 * n_in);
    }
}

/* What cuda/ does not use is right all the same: a time of it counts. */
static void test_variants(void) {
    CHECK_EQ(variants_prepare(&card), cudaSuccess);
    for (uint32_t n_tokens : {1u, 3u, 4u})
        for (uint32_t n_in : {32u, 172u, 1376u, 2080u})
            check_planes(n_tokens, n_in == 172 ? 100 : 20, n_in);
    check_shuffle(32, 1024);
    check_shuffle(160, 2048);
}

static void test_experts(void) {
    for (uint32_t n_tokens : {1u, 2u, 7u, 40u})
        for (uint32_t n_used : {1u, 3u, 7u})
            check_experts(n_tokens, n_used, n_tokens % 2);
}

int main(void) {
    sq_error error;
    if (gpu_card_open(&card, nullptr, &error)) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    CHECK_EQ(gpu_gemv_prepare(&card), cudaSuccess);
    CHECK_EQ(gpu_gemm_prepare(&card), cudaSuccess);
    CHECK_EQ(gpu_experts_prepare(&card), cudaSuccess);
    RUN(test_sizes);
    RUN(test_shapes);
    RUN(test_chain);
    RUN(test_experts);
    RUN(test_variants);
    cudaStreamDestroy(stream);
    return check_report();
}
