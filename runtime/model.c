#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "offload.h"
#include "status.h"
#include "tokenizer/tokenizer.h"

enum { FORMAT_VERSION = 1 };

static const sq_arch *const architectures[] = {
    &sq_arch_gemma2, &sq_arch_gemma3, &sq_arch_llama,    &sq_arch_opt,     &sq_arch_phi3,
    &sq_arch_qwen2,  &sq_arch_qwen3,  &sq_arch_qwen3moe, &sq_arch_smollm3,
};

/* ---- loading, for models/ ---------------------------------------------------------------------- */

sq_status sq_model_load_u32(const sq_model *model, const char *key, uint32_t low, uint32_t high,
                            bool optional, uint32_t fallback, uint32_t *value, sq_error *error) {
    char full[96];
    snprintf(full, sizeof full, "%s.%s", model->arch->name, key);
    if (!sq_gguf_has(model->file, full) && optional) {
        *value = fallback;
        return SQ_OK;
    }
    uint32_t found;
    if (!sq_gguf_get_u32(model->file, full, &found))
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected an integer, found none; the file is damaged",
                       full);
    if (found < low || found > high)
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected %u to %u, found %u; the file is damaged", full,
                       low, high, found);
    *value = found;
    return SQ_OK;
}

sq_status sq_model_load_f32(const sq_model *model, const char *key, bool optional, float fallback,
                            float *value, sq_error *error) {
    char full[96];
    snprintf(full, sizeof full, "%s.%s", model->arch->name, key);
    if (!sq_gguf_has(model->file, full) && optional) {
        *value = fallback;
        return SQ_OK;
    }
    float found;
    if (!sq_gguf_get_f32(model->file, full, &found) || !isfinite(found) || found <= 0)
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected a positive number; the file is damaged", full);
    *value = found;
    return SQ_OK;
}

sq_status sq_model_load_bool(const sq_model *model, const char *key, bool *value, sq_error *error) {
    char full[96];
    snprintf(full, sizeof full, "%s.%s", model->arch->name, key);
    *value = false;
    if (sq_gguf_has(model->file, full) && !sq_gguf_get_bool(model->file, full, value))
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected true or false; the file is damaged", full);
    return SQ_OK;
}

static sq_status tensor_list(sq_model *model, const sq_matrix *matrix, const float *vector,
                             const sq_tensor_info *info, sq_error *error) {
    if (model->n_tensors == model->capacity)
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: more tensors than the architecture has", info->name);
    model->tensors[model->n_tensors] = *info;
    model->matrices[model->n_tensors] = matrix;
    model->vectors[model->n_tensors] = vector;
    model->n_tensors++;
    return SQ_OK;
}

sq_status sq_model_load_vector(sq_model *model, const char *name, uint32_t n, const float **vector,
                               sq_error *error) {
    sq_status status = sq_vector_load(model->file, name, n, vector, error);
    if (status)
        return status;
    uint64_t bytes = (uint64_t)n * sizeof(float);
    sq_tensor_info info = {
        .name = sq_gguf_find_tensor(model->file, name)->name,
        .type = sq_types[SQ_TYPE_F32].name,
        .n_out = 1,
        .n_in = n,
        .bytes = bytes,
        .bits = 32,
    };
    return tensor_list(model, NULL, *vector, &info, error);
}

sq_status sq_model_load_linear(sq_model *model, const char *prefix, uint32_t n_out, uint32_t n_in,
                               sq_linear *linear, sq_error *error) {
    char name[SQ_NAME_BYTES];
    snprintf(name, sizeof name, "%s.weight", prefix);
    sq_matrix *w = &linear->w;
    sq_status status = sq_matrix_load(model->file, name, n_out, n_in, w, error);
    if (status)
        return status;
    sq_tensor_info info = {
        .name = w->name,
        .type = sq_types[w->type].name,
        .n_out = n_out,
        .n_in = n_in,
        .n_sparse = w->n_sparse,
        .bytes = w->bytes,
        .bits = 8.0 * (double)w->bytes / ((double)n_out * n_in),
    };
    status = tensor_list(model, w, NULL, &info, error);
    if (status)
        return status;
    snprintf(name, sizeof name, "%s.bias", prefix);
    linear->bias = NULL;
    if (sq_gguf_find_tensor(model->file, name))
        return sq_model_load_vector(model, name, n_out, &linear->bias, error);
    return SQ_OK;
}

sq_status sq_model_load_norm(sq_model *model, const char *prefix, uint32_t n, sq_norm *norm,
                             sq_error *error) {
    char name[SQ_NAME_BYTES];
    snprintf(name, sizeof name, "%s.weight", prefix);
    sq_status status = sq_model_load_vector(model, name, n, &norm->weight, error);
    if (status || !model->arch->layer_norm)
        return status;
    snprintf(name, sizeof name, "%s.bias", prefix);
    return sq_model_load_vector(model, name, n, &norm->bias, error);
}

/* ---- opening ----------------------------------------------------------------------------------- */

static sq_status version_check(const sq_gguf *file, sq_error *error) {
    uint32_t version;
    if (!sq_gguf_get_u32(file, "squeezellm.version", &version))
        return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                       "a GGUF file, but none of sq-convert (no squeezellm.version); convert it: sq-convert "
                       "MODEL.gguf -o MODEL.sq.gguf");
    if (version != FORMAT_VERSION)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                       "squeezellm.version: expected %d, found %u; the file needs a newer runtime",
                       FORMAT_VERSION, version);
    return SQ_OK;
}

static sq_status arch_find(sq_model *model, sq_error *error) {
    const char *name = sq_gguf_get_string(model->file, "general.architecture");
    char known[256] = "";
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (name && !strcmp(name, architectures[i]->name)) {
            model->arch = architectures[i];
            return SQ_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", architectures[i]->name);
    }
    if (!name)
        return sq_fail(error, SQ_ERROR_FORMAT, "general.architecture is missing; the file is damaged");
    return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                   "general.architecture: \"%.64s\" is none of those this runtime knows (%s)", name, known);
}

/* Room for every tensor an architecture may list: no more than the file has. */
static sq_status list_create(sq_model *model, sq_error *error) {
    model->capacity = sq_gguf_n_tensors(model->file);
    model->tensors = calloc(model->capacity + 1, sizeof *model->tensors);
    model->matrices = calloc(model->capacity + 1, sizeof *model->matrices);
    model->vectors = calloc(model->capacity + 1, sizeof *model->vectors);
    if (!model->tensors || !model->matrices || !model->vectors)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a list of %zu tensors", model->capacity);
    return SQ_OK;
}

static sq_status model_load(sq_model *model, const sq_model_options *options, sq_error *error) {
    sq_status status = version_check(model->file, error);
    if (!status)
        status = arch_find(model, error);
    if (!status)
        status = sq_kernels_choose(options ? options->cpu : NULL, &model->kernels, error);
    if (!status) {
        model->exact = (options && options->exact) || !model->kernels->fixed_gemm;
        status = list_create(model, error);
    }
    if (!status)
        status = model->arch->load(model, error);
    if (!status)
        status = sq_tokenizer_load(model->file, model->hparams.n_vocab, &model->tokenizer, error);
    if (!status)
        status = sq_chat_load(model->file, model->tokenizer, &model->chat, error);
    return status;
}

/* Puts the file's name before a message that names only what is inside it. */
static void name_file(const sq_gguf *file, sq_error *error) {
    if (!error)
        return;
    char inside[sizeof error->message];
    memcpy(inside, error->message, sizeof inside);
    sq_fail(error, error->status, "%s: %s", sq_gguf_label(file), inside);
}

/* Takes over `file`. */
static sq_status model_create(sq_gguf *file, const sq_model_options *options, sq_model **out,
                              sq_error *error) {
    sq_model *model = calloc(1, sizeof *model);
    if (!model) {
        sq_gguf_close(file);
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a model");
    }
    model->file = file;
    sq_status status = model_load(model, options, error);
    if (status)
        name_file(file, error);
    else
        status = sq_offload_open(model, options, error);
    if (status) {
        sq_model_close(model);
        return status;
    }
    *out = model;
    return SQ_OK;
}

sq_status sq_model_open(const char *path, const sq_model_options *options, sq_model **model,
                        sq_error *error) {
    *model = NULL;
    sq_gguf *file;
    sq_status status = sq_gguf_open(path, &file, error);
    return status ? status : model_create(file, options, model, error);
}

sq_status sq_model_open_memory(const void *data, size_t n_bytes, const sq_model_options *options,
                               sq_model **model, sq_error *error) {
    *model = NULL;
    sq_gguf *file;
    sq_status status = sq_gguf_open_memory(data, n_bytes, &file, error);
    return status ? status : model_create(file, options, model, error);
}

void sq_model_close(sq_model *model) {
    if (!model)
        return;
    sq_offload_close(model);
    sq_chat_free(model->chat);
    sq_tokenizer_free(model->tokenizer);
    for (int i = 0; i < SQ_N_ROPES; i++)
        free(model->ropes[i].frequencies);
    for (uint32_t i = 0; model->layers && i < model->hparams.n_layers; i++)
        free(model->layers[i].experts);
    free(model->layers);
    free(model->tensors);
    free(model->matrices);
    free(model->vectors);
    sq_gguf_close(model->file);
    free(model);
}

const sq_tokenizer *sq_model_tokenizer(const sq_model *model) {
    return model->tokenizer;
}

const sq_chat *sq_model_chat(const sq_model *model) {
    return model->chat;
}

/* ---- what a model is --------------------------------------------------------------------------- */

/* Bytes of the experts that a token does not go to. */
static uint64_t idle_bytes(const sq_model *model) {
    const sq_hparams *h = &model->hparams;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < h->n_layers; i++) {
        const sq_expert *experts = model->layers[i].experts;
        for (uint32_t e = 0; experts && e < h->n_experts; e++)
            bytes += experts[e].gate.w.bytes + experts[e].up.w.bytes + experts[e].down.w.bytes;
    }
    return h->n_experts ? bytes / h->n_experts * (h->n_experts - h->n_experts_used) : 0;
}

static void sizes_sum(const sq_model *model, sq_model_info *info) {
    double n_block = 0, n_sparse = 0, block_bits = 0;
    for (size_t i = 0; i < model->n_tensors; i++) {
        const sq_tensor_info *t = &model->tensors[i];
        const sq_matrix *m = model->matrices[i];
        uint64_t n = (uint64_t)t->n_out * t->n_in;
        info->n_params += n;
        bool lookup = m == &model->positions.w || (m == &model->embedding.w && !model->tied);
        if (!lookup)
            info->token_bytes += t->bytes;
        if (m && !strncmp(t->name, "blk.", 4)) {
            n_block += (double)n;
            n_sparse += (double)t->n_sparse;
            block_bits += 8.0 * (double)t->bytes;
        }
    }
    info->token_bytes -= idle_bytes(model);
    info->bits_per_weight = n_block > 0 ? block_bits / n_block : 0;
    info->sparse_share = n_block > 0 ? n_sparse / n_block : 0;
}

void sq_model_get_info(const sq_model *model, sq_model_info *info) {
    const sq_hparams *h = &model->hparams;
    const char *name = sq_gguf_get_string(model->file, "general.name");
    *info = (sq_model_info){
        .architecture = model->arch->name,
        .name = name ? name : "",
        .cpu = model->kernels->name,
        .prompt = model->exact ? "f32" : "int16",
        .device = model->offload.name,
        .device_absent = model->offload.absent,
        .gpu_layers = h->n_layers - model->n_cpu_layers,
        .n_layers = h->n_layers,
        .n_embd = h->n_embd,
        .n_ff = h->n_ff,
        .n_experts = h->n_experts,
        .n_experts_used = h->n_experts_used,
        .n_heads = h->n_heads,
        .n_kv_heads = h->n_kv_heads,
        .head_dim = h->head_dim,
        .n_vocab = h->n_vocab,
        .n_ctx_train = h->n_ctx_train,
        .file_bytes = sq_gguf_n_bytes(model->file),
    };
    sizes_sum(model, info);
}

size_t sq_model_n_tensors(const sq_model *model) {
    return model->n_tensors;
}

static sq_status index_check(const sq_model *model, size_t index, sq_error *error) {
    if (index < model->n_tensors)
        return SQ_OK;
    return sq_fail(error, SQ_ERROR_ARGUMENT, "tensor index: expected less than %zu, found %zu",
                   model->n_tensors, index);
}

sq_status sq_model_get_tensor(const sq_model *model, size_t index, sq_tensor_info *info, sq_error *error) {
    sq_status status = index_check(model, index, error);
    if (!status)
        *info = model->tensors[index];
    return status;
}

sq_status sq_model_read_row(const sq_model *model, size_t index, uint32_t row, float *out, sq_error *error) {
    sq_status status = index_check(model, index, error);
    if (status)
        return status;
    const sq_tensor_info *info = &model->tensors[index];
    if (row >= info->n_out)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "%s: row: expected less than %u, found %u", info->name,
                       info->n_out, row);
    const sq_matrix *m = model->matrices[index];
    if (!m) {
        memcpy(out, model->vectors[index], info->n_in * sizeof *out);
        return SQ_OK;
    }
    float *padded = aligned_alloc(64, sq_pad(m->n_in) * sizeof *padded);
    if (!padded)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a row of %u", m->n_in);
    model->kernels->types[m->type].expand_row(m, row, padded);
    memcpy(out, padded, m->n_in * sizeof *out);
    free(padded);
    return SQ_OK;
}

const char *sq_model_meta(const sq_model *model, const char *key) {
    return sq_gguf_get_string(model->file, key);
}
