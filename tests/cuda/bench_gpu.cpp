/* What the GPU reaches, as JSON on stdout. Called by tests/bench/gpu.py.
 *
 *     bench_gpu [--tiny] matrices    copies, and single matrices in every shape of launch
 *     bench_gpu [--tiny] models      whole models of random weights, which share a few matrices on the host
 *     bench_gpu [--tiny] variants    kernels that cuda/ does not use (variants.h), beside those that it does
 *
 * `--tiny` does the same on small sizes, to test this program. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <vector>

#include "session.h"
#include "variants.h"

extern "C" {
const sq_device_api *sq_device_api_get(void);
extern const sq_type_traits sq_types[SQ_N_TYPES];
extern const sq_arch sq_arch_llama;
}

static gpu_card card;
static cudaStream_t stream;
static bool tiny;

static void check(bool good, const char *what, const char *message) {
    if (!good) {
        fprintf(stderr, "bench_gpu: %s: %s\n", what, message);
        exit(1);
    }
}

static void check(cudaError_t result, const char *what) {
    check(result == cudaSuccess, what, cudaGetErrorString(result));
}

static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

/* ---- random matrices --------------------------------------------------------------------------- */

static uint64_t random_bits() {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* An f16 of random sign and mantissa, 2^-7 to 2^-5 in size. */
static uint16_t random_f16() {
    uint64_t bits = random_bits() >> 20;
    return (uint16_t)((bits & 0x83ff) | (8 + (bits >> 16 & 1)) << 10);
}

/* What a matrix of the host points to. */
struct host_matrix {
    sq_linear linear = {};
    std::vector<uint64_t> data;
    std::vector<uint16_t> lut, cols, vals;
    std::vector<int32_t> rows;

    /* `kept`: of 1000 weights */
    host_matrix(sq_type type, uint32_t n_out, uint32_t n_in, double kept) {
        sq_matrix *w = &linear.w;
        w->type = type;
        w->n_out = n_out;
        w->n_in = n_in;
        w->row_bytes = sq_types[type].row_bytes(n_in);
        data.resize(n_out * w->row_bytes / 8 + 1);
        for (uint64_t &d : data)
            d = random_bits();
        w->data = (const uint8_t *)data.data();
        uint8_t *bytes = (uint8_t *)data.data();
        for (size_t i = 0; type == SQ_TYPE_Q8_0 && i < n_out * w->row_bytes; i += 34) {
            bytes[i] = 0;
            bytes[i + 1] = 0x04; /* a scale of 2^-14 */
        }
        if (sq_types[type].bits) {
            lut.resize((size_t)n_out << sq_types[type].bits);
            for (uint16_t &entry : lut)
                entry = random_f16();
            w->lut = lut.data();
        }
        if (kept > 0)
            keep(kept);
    }
    void keep(double kept) {
        sq_matrix *w = &linear.w;
        uint32_t each = (uint32_t)ceil(w->n_in * kept / 1000);
        for (uint32_t r = 0; r <= w->n_out; r++)
            rows.push_back((int32_t)(r * each));
        for (uint32_t r = 0; r < w->n_out; r++)
            for (uint32_t i = 0; i < each; i++) {
                uint32_t first = (uint32_t)((uint64_t)i * w->n_in / each);
                uint32_t last = (uint32_t)((uint64_t)(i + 1) * w->n_in / each);
                cols.push_back((uint16_t)(first + random_bits() % (last - first)));
                vals.push_back(random_f16());
            }
        w->n_sparse = (uint32_t)cols.size();
        w->rows = rows.data();
        w->cols16 = cols.data();
        w->vals = vals.data();
    }
};

static const double KEPT = 4.5; /* 0.45 % */

static uint64_t packed_bytes(const gpu_matrix *w, uint32_t n_sparse) {
    uint64_t tables = w->bits == 8 ? (uint64_t)w->n_tiles * w->n_spans * 64
                                   : (uint64_t)gpu_rows(w) * sq_table_words(w->bits) * 4;
    uint64_t sparse = n_sparse ? 4 * ((uint64_t)n_sparse + gpu_rows(w)) : 0;
    return sq_vector_at(w->bits, w->n_spans, w->n_tiles, 0, 0) * 16 + tables + sparse;
}

/* ---- bandwidth --------------------------------------------------------------------------------- */

/* Seconds of work that `launch` puts on the stream: the median of some rounds after a warm one. */
template <typename F> static double seconds_of(F launch, int rounds) {
    cudaEvent_t from, to;
    std::vector<double> seconds;
    check(cudaEventCreate(&from), "an event");
    check(cudaEventCreate(&to), "an event");
    for (int i = 0; i <= rounds; i++) {
        float ms = 0;
        cudaEventRecord(from, stream);
        launch();
        cudaEventRecord(to, stream);
        check(cudaEventSynchronize(to), "waiting");
        cudaEventElapsedTime(&ms, from, to);
        if (i)
            seconds.push_back(ms * 1e-3);
    }
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    return std::max(median(seconds), 1e-9);
}

/* Of a graph of what `launch` launches. */
template <typename F> static double graph_seconds(F launch) {
    gpu_launch l = {&card, stream, cudaSuccess};
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    launch(&l);
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(l.result, "launch");
    check(cudaGraphInstantiate(&exec, graph, 0), "graph");
    double seconds = seconds_of([&] { check(cudaGraphLaunch(exec, stream), "graph"); }, tiny ? 1 : 9);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return seconds;
}

/* Bytes read and written a second by copies on the device. */
static double copy_bandwidth() {
    size_t n = tiny ? 1 << 20 : (size_t)1 << 30;
    uint8_t *from, *to;
    check(cudaMalloc(&from, n), "memory");
    check(cudaMalloc(&to, n), "memory");
    check(cudaMemsetAsync(from, 1, n, stream), "clearing");
    double seconds = seconds_of([&] { cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, stream); }, 10);
    cudaFree(from);
    cudaFree(to);
    return 2 * (double)n / seconds;
}

/* ---- single matrices --------------------------------------------------------------------------- */

/* Copies of one matrix, more than the L2 cache holds, multiplied one after another by a graph. */
struct matrix_bench {
    std::vector<gpu_matrix> copies;
    std::vector<void *> memories;
    gpu_operand in = {};
    float *out = nullptr;
    uint64_t bytes;

    matrix_bench(const host_matrix &host) {
        const sq_linear *linears[] = {&host.linear};
        size_t wanted = tiny ? 1 << 16 : (size_t)512 << 20;
        do {
            gpu_matrix w;
            void *memory;
            sq_error error;
            check(!gpu_matrix_upload(&card, stream, linears, 1, false, &w, &memory, &error), "upload",
                  error.message);
            copies.push_back(w);
            memories.push_back(memory);
            bytes = packed_bytes(&w, host.linear.w.n_sparse);
        } while (copies.size() * bytes < wanted);
        in.stride = (uint32_t)gpu_round_up(host.linear.w.n_in, SQ_OPERAND_PAD);
        check(cudaMalloc(&in.data, (size_t)4 * GPU_RUN_TOKENS * in.stride), "memory");
        check(cudaMemsetAsync(in.data, 0x11, (size_t)4 * GPU_RUN_TOKENS * in.stride, stream), "clearing");
        check(cudaMalloc(&out, (size_t)4 * GPU_RUN_TOKENS * gpu_rows(&copies[0])), "memory");
    }
    ~matrix_bench() {
        for (void *memory : memories)
            cudaFree(memory);
        cudaFree(in.data);
        cudaFree(out);
    }
    /* Of one product. */
    double seconds(uint32_t n_tokens, gpu_shape shape) {
        return seconds_each([&](gpu_launch *l, const gpu_matrix &w) {
            gpu_product p = {};
            p.w = w;
            p.in = in;
            p.n_tokens = n_tokens;
            p.use = GPU_STORE;
            p.out = out;
            p.out_stride = gpu_rows(&w);
            if (n_tokens <= GPU_GEMV_TOKENS)
                gpu_gemv(l, &p, shape);
            else
                gpu_gemm(l, &p);
        });
    }
    /* Of what `launch` does with one of the copies. */
    template <typename F> double seconds_each(F launch) {
        double s = graph_seconds([&](gpu_launch *l) {
            for (const gpu_matrix &w : copies)
                launch(l, w);
        });
        return s / (double)copies.size();
    }
};

static void matrices_measure() {
    struct size {
        uint32_t n_out, n_in;
    };
    std::vector<size> sizes = {{4096, 4096}, {11008, 4096}, {4096, 11008}, {14336, 4096}, {32000, 4096}};
    if (tiny)
        sizes = {{64, 256}};
    const char *comma = "";
    printf("\"matrices\": [");
    for (size s : sizes)
        for (sq_type type : {SQ_TYPE_LUT3, SQ_TYPE_LUT4})
            for (double kept : {0.0, KEPT}) {
                host_matrix host(type, s.n_out, s.n_in, kept);
                matrix_bench bench(host);
                printf("%s\n{\"n_out\": %u, \"n_in\": %u, \"bits\": %u, \"kept\": %s, \"bytes\": %llu, "
                       "\"tokens\": {",
                       comma, s.n_out, s.n_in, sq_types[type].bits, kept > 0 ? "true" : "false",
                       (unsigned long long)bench.bytes);
                comma = ",";
                for (uint32_t t : {1u, 2u, 4u, 8u, 9u, 16u, 17u, 64u, 512u})
                    printf("%s\"%u\": %.4g", t == 1 ? "" : ", ", t, bench.seconds(t, {}));
                printf("}, \"shapes\": {");
                for (uint32_t warps : {4u, 8u, 16u})
                    for (uint32_t blocks : {1u, 2u, 3u})
                        printf("%s\"%u x %u\": %.4g", warps == 4 && blocks == 1 ? "" : ", ", warps, blocks,
                               bench.seconds(1, {warps, blocks}));
                printf("}}");
                fflush(stdout);
            }
    printf("]}\n");
}

/* ---- variants ---------------------------------------------------------------------------------- */

static void variant_print(const char *what, double value, const char *unit) {
    static const char *comma = "";
    printf("%s\n{\"what\": \"%s\", \"value\": %.5g, \"unit\": \"%s\"}", comma, what, value, unit);
    comma = ",";
}

/* Of dense matrices of 4 bits, in the bytes that gemv reads. The variants' own data are zeros: no time
 * depends on them. */
static void variants_of(uint32_t n_out, uint32_t n_in) {
    host_matrix host(SQ_TYPE_LUT4, n_out, n_in, 0);
    matrix_bench bench(host);
    auto print = [&](const char *what, uint32_t n_tokens, double seconds) {
        char line[100];
        snprintf(line, sizeof line, "%u × %u, %s, %u token%s", n_out, n_in, what, n_tokens,
                 n_tokens > 1 ? "s" : "");
        variant_print(line, (double)bench.bytes / seconds * 1e-9, "GB/s");
    };
    float *scales;
    check(cudaMalloc(&scales, (size_t)n_out * 16 * sizeof(float)), "memory"); /* shuffle's tables too */
    check(cudaMemsetAsync(scales, 0, (size_t)n_out * 16 * sizeof(float), stream), "clearing");
    for (uint32_t n_tokens : {1u, 4u}) {
        print("gemv", n_tokens, bench.seconds(n_tokens, {}));
        print("in planes of bytes", n_tokens, bench.seconds_each([&](gpu_launch *l, const gpu_matrix &w) {
            variant_planes p = {w,        scales,   (const int8_t *)bench.in.data, scales, bench.in.stride,
                                n_tokens, bench.out};
            variant_planes_launch(l, &p);
        }));
    }
    gpu_card whole = card;
    card.dependent_launch = false;
    print("gemv without dependent launch", 1, bench.seconds(1, {}));
    card = whole;
    print("by shuffles", 1, bench.seconds_each([&](gpu_launch *l, const gpu_matrix &w) {
        variant_shuffle p = {w.codes, scales, scales, bench.out, n_out, n_in};
        variant_shuffle_launch(l, &p);
    }));
    print("codes read alone", 1, bench.seconds_each([&](gpu_launch *l, const gpu_matrix &w) {
        variant_read_launch(l, &w, (uint32_t *)bench.out);
    }));
    cudaFree(scales);
}

static void variants_measure() {
    check(variants_prepare(&card), "kernels");
    printf("\"variants\": [");
    uint32_t n = tiny ? 256 : (uint32_t)card.n_processors * 2048, *out;
    check(cudaMalloc(&out, n * sizeof *out), "memory");
    double seconds = seconds_of(
        [&] {
            gpu_launch l = {&card, stream, cudaSuccess};
            variant_permute_launch(&l, n, out);
            check(l.result, "launch");
        },
        tiny ? 1 : 9);
    cudaFree(out);
    variant_print("byte permutes", (double)n * VARIANT_PERMUTES / seconds * 1e-12, "10^12 a second");
    for (uint32_t n_out : {4096u, 14336u})
        variants_of(tiny ? 64 : n_out, tiny ? 1024 : 4096);
    printf("]}\n");
}

/* ---- whole models ------------------------------------------------------------------------------ */

struct shape {
    const char *name;
    uint32_t n_layers, n_embd, n_ff, n_heads, n_kv_heads, n_vocab;
};

struct random_model {
    sq_model model = {};
    std::vector<sq_layer> layers;
    std::vector<float> ones, frequencies;
    std::map<std::pair<uint32_t, uint32_t>, std::unique_ptr<host_matrix>> matrices;
    std::unique_ptr<host_matrix> head;

    random_model(const shape &s, sq_type type) : layers(s.n_layers), ones(s.n_embd, 1.0f) {
        sq_hparams *h = &model.hparams;
        uint32_t head_dim = s.n_embd / s.n_heads, n_kv = s.n_kv_heads * head_dim;
        h->n_layers = s.n_layers;
        h->n_embd = h->n_token_embd = s.n_embd;
        h->n_ff = s.n_ff;
        h->n_heads = s.n_heads;
        h->n_kv_heads = s.n_kv_heads;
        h->head_dim = h->n_rot = head_dim;
        h->n_vocab = s.n_vocab;
        h->n_ctx_train = 8192;
        h->n_ctx_short = UINT32_MAX;
        h->norm_eps = 1e-5f;
        h->embd_scale = 1;
        h->attn_scale = 1 / sqrtf((float)head_dim);
        for (uint32_t i = 0; i < head_dim; i++)
            frequencies.push_back(powf(10000, -(float)(i % (head_dim / 2)) / (float)(head_dim / 2)));
        model.ropes[SQ_ROPE_MAIN] = {frequencies.data(), 1};
        model.arch = &sq_arch_llama;
        head.reset(new host_matrix(SQ_TYPE_Q8_0, s.n_vocab, s.n_embd, 0));
        model.head = model.embedding = head->linear;
        model.output_norm.weight = ones.data();
        for (sq_layer &l : layers) {
            l.attn_norm.weight = l.ffn_norm.weight = ones.data();
            l.q = l.attn_output = matrix(type, s.n_embd, s.n_embd);
            l.k = l.v = matrix(type, n_kv, s.n_embd);
            l.gate = l.up = matrix(type, s.n_ff, s.n_embd);
            l.down = matrix(type, s.n_embd, s.n_ff);
        }
        model.layers = layers.data();
    }
    sq_linear matrix(sq_type type, uint32_t n_out, uint32_t n_in) {
        std::unique_ptr<host_matrix> &m = matrices[{n_out, n_in}];
        if (!m)
            m.reset(new host_matrix(type, n_out, n_in, KEPT));
        return m->linear;
    }
};

/* Bytes of weights that a token reads. */
static uint64_t token_bytes(const sq_device *d) {
    uint64_t bytes = packed_bytes(&d->head, 0);
    for (uint32_t i = 0; i < d->model->hparams.n_layers; i++) {
        const gpu_layer *l = &d->layers[i];
        const sq_layer *m = &d->model->layers[i];
        bytes += packed_bytes(&l->qkv[0], m->q.w.n_sparse + m->k.w.n_sparse + m->v.w.n_sparse);
        bytes += packed_bytes(&l->output, m->attn_output.w.n_sparse);
        bytes += packed_bytes(&l->up, m->gate.w.n_sparse + m->up.w.n_sparse);
        bytes += packed_bytes(&l->down, m->down.w.n_sparse);
    }
    return bytes;
}

static double wall_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* Runs n_tokens at `position`, all with logits; the seconds of it. */
static double run_seconds(const sq_device_api *api, sq_device_session *s, uint32_t position,
                          uint32_t n_tokens, uint32_t n_logits, sq_token *tokens, sq_token *greedy) {
    sq_error error;
    sq_device_job job = {};
    job.tokens = tokens;
    job.n_tokens = n_tokens;
    job.position = position;
    job.n_logits = n_logits;
    double from = wall_seconds();
    check(!api->run(s, &job, greedy, &error), "run", error.message);
    return wall_seconds() - from;
}

/* Attention alone, of all layers, of runs that end the context: its seconds by tokens, as JSON. */
static void attention_measure(const sq_device_api *api, sq_device *device, uint32_t n_ctx, sq_kv_type kv) {
    sq_device_session *s;
    sq_error error;
    check(!api->session_create(device, n_ctx, kv, &s, &error), "session", error.message);
    check(cudaMemsetAsync(s->cache, 0, (uint8_t *)s->step - s->cache, stream), "clearing");
    for (uint32_t n_tokens : {1u, 8u, 9u, 16u, 64u, 512u}) {
        n_tokens = std::min(n_tokens, n_ctx / 2);
        s->host->position = n_ctx - n_tokens;
        check(cudaMemcpyAsync(s->step, s->host, sizeof *s->step, cudaMemcpyHostToDevice, stream), "a step");
        double seconds = graph_seconds([&](gpu_launch *l) {
            for (uint32_t i = 0; i < device->model->hparams.n_layers; i++) {
                gpu_attention a = gpu_layer_attention(s, i, n_tokens);
                gpu_attend(l, &a);
            }
        });
        printf("%s\"%u\": %.5g", n_tokens == 1 ? "" : ", ", n_tokens, seconds);
    }
    api->session_free(s);
}

static void model_measure(const shape &s, sq_type type) {
    const sq_device_api *api = sq_device_api_get();
    const uint32_t n_ctx = tiny ? 128 : 4096, n_prompt = tiny ? 40 : 2048, n_generated = tiny ? 4 : 128;
    random_model random(s, type);
    sq_device *device;
    sq_device_session *session;
    sq_error error;
    size_t free_before, free_after, n_all;
    cudaMemGetInfo(&free_before, &n_all);
    check(!api->open(&random.model, 0, &device, &error), "open", error.message);
    check(!api->session_create(device, n_ctx, SQ_KV_F16, &session, &error), "session", error.message);
    cudaMemGetInfo(&free_after, &n_all);

    std::vector<sq_token> tokens(GPU_RUN_TOKENS, 1), greedy(GPU_RUN_TOKENS);
    std::vector<double> prompts;
    for (int round = 0; round < (tiny ? 1 : 4); round++) {
        double sum = 0;
        for (uint32_t done = 0, n; done < n_prompt; done += n) {
            n = std::min(n_prompt - done, (uint32_t)GPU_RUN_TOKENS);
            sum += run_seconds(api, session, done, n, done + n == n_prompt, tokens.data(), greedy.data());
        }
        if (round || tiny)
            prompts.push_back(sum);
    }
    printf(
        "{\"model\": \"%s\", \"bits\": %u, \"weight_bytes_per_token\": %llu, \"kv_bytes_per_position\": %u,\n"
        " \"memory_bytes\": %llu, \"model_bytes\": %llu, \"session_bytes\": %llu, \"n_ctx\": %u,\n"
        " \"prompt\": {\"tokens\": %u, \"seconds\": %.5g}, \"generation\": {",
        s.name, sq_types[type].bits, (unsigned long long)token_bytes(device),
        4 * s.n_layers * s.n_kv_heads * (s.n_embd / s.n_heads),
        (unsigned long long)(free_before - free_after),
        (unsigned long long)api->model_bytes(&random.model, 0),
        (unsigned long long)api->session_bytes(&random.model, 0, n_ctx, SQ_KV_F16), n_ctx, n_prompt,
        median(prompts));
    for (uint32_t batch : {1u, 2u, 4u, 8u, 9u, 16u}) { /* each token the choice after the one before */
        std::vector<double> seconds;
        for (uint32_t i = 0; i < n_generated; i++) {
            uint32_t position = tiny ? 20 : 128;
            seconds.push_back(
                run_seconds(api, session, position + i % 64, batch, batch, tokens.data(), greedy.data()));
            tokens[0] = greedy[0];
        }
        printf("%s\"%u\": %.5g", batch == 1 ? "" : ", ", batch, median(seconds));
    }
    api->session_free(session);
    printf("}, \"attention\": {\"f16\": {");
    attention_measure(api, device, n_ctx, SQ_KV_F16);
    printf("}, \"q8\": {");
    attention_measure(api, device, n_ctx, SQ_KV_Q8);
    printf("}}}");
    fflush(stdout);
    api->close(device);
}

static void models_measure() {
    std::vector<shape> shapes = {{"LLaMA-7B", 32, 4096, 11008, 32, 32, 32000},
                                 {"Llama-3-8B", 32, 4096, 14336, 32, 8, 128256}};
    if (tiny)
        shapes = {{"tiny", 2, 64, 96, 4, 2, 100}};
    const char *comma = "";
    printf("\"models\": [");
    for (const shape &s : shapes)
        for (sq_type type : {SQ_TYPE_LUT4, SQ_TYPE_LUT3}) {
            printf("%s\n", comma);
            model_measure(s, type);
            comma = ",";
        }
    printf("]}\n");
}

int main(int argc, char **argv) {
    tiny = argc > 1 && !strcmp(argv[1], "--tiny");
    const char *part = argc > 1 + tiny ? argv[1 + tiny] : "";
    sq_error error;
    sq_device_info info;
    check(!gpu_card_open(&card, &info, &error), "no measurement", error.message);
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    check(gpu_gemv_prepare(&card), "kernels");
    check(gpu_gemm_prepare(&card), "kernels");
    printf("{\"device\": \"%s\", \"copy_bytes_per_second\": %.5g,\n", info.name, copy_bandwidth());
    if (!strcmp(part, "matrices"))
        matrices_measure();
    else if (!strcmp(part, "models"))
        models_measure();
    else if (!strcmp(part, "variants"))
        variants_measure();
    else
        check(false, part, "expected matrices, models or variants");
    cudaStreamDestroy(stream);
    return 0;
}
