/* Attention of every width, cache and kind of run against the scalar definition: timelines in pieces of many
 * and of few tokens. */
#include <algorithm>
#include <vector>

#include "device_data.h"

extern "C" {
extern const sq_kernels sq_kernels_scalar;
}

static uint64_t seed = 88172645463325252u;
static gpu_card card;

static const char *const kv_names[SQ_N_KV_TYPES] = {"f16", "f32", "q8"};

struct shape {
    uint32_t head_dim, n_heads, n_kv_heads, window;
    float cap;
    bool turned; /* norms and rotates queries and keys */
};

static std::vector<float> random_floats(size_t n, float size) {
    std::vector<float> x(n);
    for (float &value : x)
        value = check_random_float(&seed, size);
    return x;
}

/* Tokens of a timeline, and what the scalar definition makes of them. */
struct timeline {
    shape s;
    sq_kv_type kv;
    uint32_t n_tokens, n_rot, q_width, stride;
    size_t chain_bytes;
    std::vector<float> qkv, q_norm, k_norm; /* [n_tokens, stride]: queries, keys, values; [head_dim] */
    std::vector<float2> angles;             /* [n_tokens, n_rot / 2] */
    std::vector<uint8_t> chains;            /* [n_kv_heads] */
    std::vector<float> expected;            /* [n_tokens, q_width] */

    timeline(const shape &shape, sq_kv_type kv, uint32_t n_tokens)
        : s(shape), kv(kv), n_tokens(n_tokens), n_rot(s.head_dim / 4 * 2), q_width(s.n_heads * s.head_dim),
          stride((uint32_t)gpu_round_up(q_width + 2 * s.n_kv_heads * s.head_dim, 16)),
          qkv(random_floats((size_t)n_tokens * stride, 2)), q_norm(random_floats(s.head_dim, 2)),
          k_norm(random_floats(s.head_dim, 2)), expected((size_t)n_tokens * q_width) {
        for (uint32_t i = 0; i < n_tokens * (n_rot / 2); i++) {
            float angle = check_random_float(&seed, 3);
            angles.push_back({cosf(angle), sinf(angle)});
        }
        size_t n_blocks = (n_tokens + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK;
        size_t scales = kv == SQ_KV_Q8 ? 4 * sq_kv_scales(s.head_dim) : 0;
        size_t element = kv == SQ_KV_F32 ? 4 : kv == SQ_KV_F16 ? 2 : 1;
        chain_bytes = n_blocks * (scales + 2 * SQ_KV_BLOCK * s.head_dim * element);
        chains.resize(s.n_kv_heads * chain_bytes);
        for (uint32_t t = 0; t < n_tokens; t++)
            token_attend(t);
    }
    std::vector<float> turned(uint32_t token, const float *x, const std::vector<float> &norm) const {
        std::vector<float> y(x, x + s.head_dim), cosines, sines;
        if (!s.turned)
            return y;
        for (uint32_t i = 0; i < n_rot / 2; i++) {
            cosines.push_back(angles[token * (n_rot / 2) + i].x);
            sines.push_back(angles[token * (n_rot / 2) + i].y);
        }
        sq_kernels_scalar.rms_norm(y.data(), norm.data(), 1e-5f, s.head_dim, y.data());
        sq_kernels_scalar.rope(y.data(), cosines.data(), sines.data(), 1, s.head_dim, n_rot);
        return y;
    }
    void token_attend(uint32_t token) {
        const float *x = &qkv[(size_t)token * stride];
        for (uint32_t head = 0; head < s.n_kv_heads; head++) {
            const float *k = x + q_width + head * s.head_dim, *v = k + s.n_kv_heads * s.head_dim;
            sq_kernels_scalar.kv_store[kv](turned(token, k, k_norm).data(), v, s.head_dim, token,
                                           &chains[head * chain_bytes]);
        }
        for (uint32_t head = 0; head < s.n_heads; head++) {
            std::vector<float> q = turned(token, x + head * s.head_dim, q_norm);
            sq_attention a = {};
            a.cache = &chains[head / (s.n_heads / s.n_kv_heads) * chain_bytes];
            a.head_dim = s.head_dim;
            a.window = s.window;
            a.position = token;
            a.n_tokens = a.n_heads = 1;
            a.scale = 1 / sqrtf((float)s.head_dim);
            a.cap = s.cap;
            a.q = q.data();
            a.out = &expected[(size_t)token * q_width + head * s.head_dim];
            a.ldq = a.ldo = s.head_dim;
            sq_kernels_scalar.attend[kv](&a);
        }
    }
};

/* All of a timeline on the device, n_tokens of `pieces` at a time. */
static std::vector<uint16_t> device_attend(const timeline &t, bool exact, const std::vector<uint32_t> &pieces,
                                           uint32_t *out_stride) {
    const uint32_t n_rows = t.n_tokens * t.s.n_kv_heads;
    gpu_attention a = {};
    a.stride = t.stride;
    a.k_at = t.q_width;
    a.v_at = t.q_width + t.s.n_kv_heads * t.s.head_dim;
    a.exact = exact;
    a.kv = t.kv;
    a.n_ctx = t.n_tokens;
    a.pitch = gpu_row_pitch(t.s.head_dim);
    a.key_bytes = gpu_row_bytes(t.kv, t.s.head_dim, true);
    a.value_bytes = gpu_row_bytes(t.kv, t.s.head_dim, false);
    on_device<uint8_t> keys(std::vector<uint8_t>((size_t)n_rows * a.key_bytes, 0xff)),
        values(std::vector<uint8_t>((size_t)n_rows * a.value_bytes, 0xff)); /* NaN where nothing is stored */
    on_device<float> qkv(t.qkv), q_norm(t.q_norm), k_norm(t.k_norm),
        partial(std::vector<float>(
            (size_t)gpu_attention_blocks(&card) * GPU_ATTENTION_ROWS * (t.s.head_dim + 2), NAN));
    on_device<float2> angles(t.angles);
    on_device<uint32_t> arrivals(std::vector<uint32_t>(gpu_attention_blocks(&card)));
    operand_data operand(t.n_tokens, t.q_width);
    on_device<uint16_t> out(operand.parts);
    a.keys = keys.data;
    a.values = values.data;
    a.n_heads = t.s.n_heads;
    a.n_kv_heads = t.s.n_kv_heads;
    a.head_dim = t.s.head_dim;
    a.n_rot = t.n_rot;
    a.window = t.s.window;
    a.scale = 1 / sqrtf((float)t.s.head_dim);
    a.cap = t.s.cap;
    a.eps = 1e-5f;
    a.q_norm = t.s.turned ? q_norm.data : nullptr;
    a.k_norm = t.s.turned ? k_norm.data : nullptr;
    a.partial = partial.data;
    a.arrivals = arrivals.data;
    uint32_t first = 0;
    for (uint32_t n : pieces) {
        std::vector<gpu_step> step(1);
        step[0].position = first;
        on_device<gpu_step> d_step(step);
        a.step = d_step.data;
        a.qkv = qkv.data + (size_t)first * t.stride;
        a.angles = t.s.turned ? angles.data + (size_t)first * (t.n_rot / 2) : nullptr;
        a.out = {out.data + (size_t)2 * first * operand.stride, operand.stride};
        a.n_tokens = n;
        gpu_launch l = {&card, stream, cudaSuccess};
        gpu_attend(&l, &a);
        CHECK_EQ(l.result, cudaSuccess);
        CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        first += n;
    }
    CHECK_EQ(first, t.n_tokens);
    *out_stride = operand.stride;
    return out.read();
}

static void check_timeline(const timeline &t, bool exact, const std::vector<uint32_t> &pieces) {
    operand_data found(t.n_tokens, t.q_width);
    uint32_t stride;
    found.parts = device_attend(t, exact, pieces, &stride);
    order_reverse(true);
    CHECK_SAY(found.parts == device_attend(t, exact, pieces, &stride), "a second run differs");
    order_reverse(false);
    /* Operands of tensor cores keep 11 bits; what is normed and rotated may be stored rounded otherwise. */
    bool tensor_cores = !exact && t.kv != SQ_KV_F32 && t.s.head_dim % 2 == 0;
    double most = tensor_cores ? 3e-3 : 1e-5, worst = 0;
    if (t.s.turned && t.kv != SQ_KV_F32)
        most = t.kv == SQ_KV_Q8 ? 1e-2 : fmax(most, 1e-3);
    for (uint32_t i = 0; i < t.n_tokens * t.q_width; i++) {
        double x = found.get(i / t.q_width, i % t.q_width);
        CHECK_SAY(fabs(x - t.expected[i]) <= most,
                  "%s cache, %s, %u of %u wide, window %u: token %u, component %u: found %g, expected %g",
                  kv_names[t.kv], exact ? "exact" : "fast", t.s.n_heads, t.s.head_dim, t.s.window,
                  i / t.q_width, i % t.q_width, x, t.expected[i]);
        worst = fmax(worst, fabs(x - t.expected[i]));
    }
    CHECK_SAY(!tensor_cores || worst > 1e-5, "off by %g: tensor cores were not used", worst);
}

static const shape shapes[] = {
    {40, 3, 1, 0, 0, false},   {64, 4, 2, 20, 0, true},  {96, 2, 2, 0, 5, false},
    {128, 3, 1, 64, 0, false}, {256, 2, 1, 0, 0, false}, {6, 4, 2, 3, 5, true},
};

static void test_pieces(void) {
    for (const shape &s : shapes)
        for (int kv = 0; kv < SQ_N_KV_TYPES; kv++) {
            timeline t(s, (sq_kv_type)kv, 137);
            check_timeline(t, false, {70, 3, 12, 52});
        }
}

/* In f32, of which a short timeline says enough; an odd width has no other. */
static void test_exact(void) {
    for (const shape &s : shapes)
        for (int kv = 0; kv < SQ_N_KV_TYPES; kv++)
            check_timeline(timeline(s, (sq_kv_type)kv, 30), true, {17, 8, 1, 4});
    check_timeline(timeline({7, 2, 1, 0, 0, false}, SQ_KV_F16, 30), false, {17, 13});
}

/* As many splits as there may be, more than there are tiles. */
static void test_splits(void) {
    gpu_card small = card;
    card.n_processors = 40;
    for (bool exact : {true, false})
        check_timeline(timeline({64, 4, 1, 0, 0, false}, SQ_KV_F16, 160), exact, {140, 1, 9, 8, 2});
    card = small;
}

int main(void) {
    sq_error error;
    if (gpu_card_open(&card, nullptr, &error)) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    CHECK_EQ(gpu_attention_prepare(&card), cudaSuccess);
    RUN(test_pieces);
    RUN(test_exact);
    RUN(test_splits);
    cudaStreamDestroy(stream);
    return check_report();
}
