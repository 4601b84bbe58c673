/* sq-info: what is in a model file, and what it takes to run it. */
#include "json.h"
#include "options.h"
#include "sq.h"
#include "terminal.h"

#include <stdlib.h>
#include <string.h>

static const char tool_name[] = "sq-info";

/* What the tensors of one role share: "blk.*.attn_q.weight". */
typedef struct group {
    text name;
    sq_tensor_info first;
    size_t n_tensors;
    uint64_t n_sparse, n_weights, bytes;
} group;

typedef struct report {
    const sq_model *model;
    const char *path;
    sq_model_info info;
    uint32_t n_ctx;
    const char *kv;
    uint64_t weight_bytes, kv_bytes;
    const char *chat_problem; /* NULL: the model chats */
} report;

/* ---- tensors --------------------------------------------------------------------------------- */

/* "blk.12.ffn_up.7.weight" without the numbers, which stand between dots. */
static void append_role(text *out, const char *name) {
    for (const char *dot; (dot = strchr(name, '.')); name = dot) {
        text_append(out, name, (size_t)(dot + 1 - name));
        size_t n_digits = strspn(++dot, "0123456789");
        if (n_digits > 0 && dot[n_digits] == '.') {
            text_append(out, "*", 1);
            dot += n_digits;
        }
    }
    text_append_string(out, name);
}

static bool belongs(const group *g, const char *role, const sq_tensor_info *t) {
    return strcmp(text_string(&g->name), role) == 0 && strcmp(g->first.type, t->type) == 0 &&
           g->first.n_out == t->n_out && g->first.n_in == t->n_in;
}

static void add_to_groups(group **groups, size_t *n_groups, const sq_tensor_info *t) {
    text role = {0};
    append_role(&role, t->name);
    size_t i = 0;
    while (i < *n_groups && !belongs(&(*groups)[i], text_string(&role), t)) {
        i++;
    }
    if (i == *n_groups) {
        *groups = memory_resize(*groups, ++*n_groups, sizeof **groups);
        (*groups)[i] = (group){.name = role, .first = *t};
    } else {
        text_free(&role);
    }
    group *g = &(*groups)[i];
    g->n_tensors++;
    g->n_sparse += t->n_sparse;
    g->n_weights += (uint64_t)t->n_out * t->n_in;
    g->bytes += t->bytes;
}

static void append_groups(text *out, const group *groups, size_t n_groups) {
    text_printf(out, "\n%-28s %5s %16s %-5s %7s %9s %9s\n", "tensors", "", "shape", "type", "bits", "sparse",
                "MB");
    for (size_t i = 0; i < n_groups; i++) {
        const group *g = &groups[i];
        double n_weights = (double)g->n_weights;
        text shape = {0};
        text_printf(&shape, "%u x %u", g->first.n_out, g->first.n_in);
        text_printf(out, "%-28s %5zu %16s %-5s %7.3f %7.3f %% %9.3f\n", text_string(&g->name), g->n_tensors,
                    text_string(&shape), g->first.type, 8 * (double)g->bytes / n_weights,
                    100 * (double)g->n_sparse / n_weights, 1e-6 * (double)g->bytes);
        text_free(&shape);
    }
}

static bool append_tensor_table(text *out, const sq_model *model, sq_error *error) {
    group *groups = NULL;
    size_t n_groups = 0;
    sq_status status = SQ_OK;
    for (size_t i = 0; status == SQ_OK && i < sq_model_n_tensors(model); i++) {
        sq_tensor_info t;
        status = sq_model_get_tensor(model, i, &t, error);
        if (status == SQ_OK) {
            add_to_groups(&groups, &n_groups, &t);
        }
    }
    if (status == SQ_OK) {
        append_groups(out, groups, n_groups);
    }
    for (size_t i = 0; i < n_groups; i++) {
        text_free(&groups[i].name);
    }
    free(groups);
    return status == SQ_OK;
}

/* ---- for people ------------------------------------------------------------------------------ */

static const char *meta(const report *r, const char *key) {
    const char *value = sq_model_meta(r->model, key);
    return value ? value : "";
}

static void append_quantization(text *out, const report *r) {
    const char *method = meta(r, "squeezellm.method"), *calibration = meta(r, "squeezellm.calibration");
    text_printf(out, "quantized     by %s", method[0] ? method : "an unknown method");
    if (r->info.bits_per_weight > 0) {
        text_printf(out, ": %.3f bits a weight, %.3f %% of them kept sparse", r->info.bits_per_weight,
                    100 * r->info.sparse_share);
    }
    text_printf(out, "\n%s%s%s", calibration[0] ? "calibration   " : "", calibration,
                calibration[0] ? "\n" : "");
}

static void append_summary(text *out, const report *r) {
    const sq_model_info *i = &r->info;
    text_printf(out, "model         %s\n", i->name[0] ? i->name : "(no name)");
    text_printf(
        out, "architecture  %s: %u layers, width %u, FFN %u, %u heads over %u KV heads of %u, %u tokens\n",
        i->architecture, i->n_layers, i->n_embd, i->n_ff, i->n_heads, i->n_kv_heads, i->head_dim, i->n_vocab);
    if (i->n_experts > 0) {
        text_printf(out, "experts       %u, of which a token uses %u\n", i->n_experts, i->n_experts_used);
    }
    text_printf(out, "size          %.2f M weights, file %.2f MB\n", 1e-6 * (double)i->n_params,
                1e-6 * (double)i->file_bytes);
    append_quantization(out, r);
    text_printf(out, "memory        weights %.2f MB + KV cache (%s) %.2f MB at %u tokens = %.2f MB\n",
                1e-6 * (double)r->weight_bytes, r->kv, 1e-6 * (double)r->kv_bytes, r->n_ctx,
                1e-6 * (double)(r->weight_bytes + r->kv_bytes));
    text_printf(out, "context       trained for %u tokens\n", i->n_ctx_train);
    text_printf(out, "tokenizer     %s\n", meta(r, "tokenizer.ggml.model"));
    text_printf(out, "chat          %s\n", r->chat_problem ? r->chat_problem : "yes");
    text_printf(out, "runs with     CPU %s, prompts in %s, reads %.2f MB of weights a token\n", i->cpu,
                i->prompt, 1e-6 * (double)i->token_bytes);
}

/* ---- for programs ---------------------------------------------------------------------------- */

static void write_architecture(json_writer *w, const sq_model_info *i) {
    json_string(w, "architecture", i->architecture);
    json_u64(w, "n_layers", i->n_layers);
    json_u64(w, "n_embd", i->n_embd);
    json_u64(w, "n_ff", i->n_ff);
    json_u64(w, "n_experts", i->n_experts);
    json_u64(w, "n_experts_used", i->n_experts_used);
    json_u64(w, "n_heads", i->n_heads);
    json_u64(w, "n_kv_heads", i->n_kv_heads);
    json_u64(w, "head_dim", i->head_dim);
    json_u64(w, "n_vocab", i->n_vocab);
    json_u64(w, "n_ctx_train", i->n_ctx_train);
}

static void write_report(json_writer *w, const report *r) {
    const sq_model_info *i = &r->info;
    json_string(w, "file", r->path);
    json_string(w, "model", i->name);
    write_architecture(w, i);
    json_u64(w, "n_params", i->n_params);
    json_u64(w, "file_bytes", i->file_bytes);
    json_string(w, "method", sq_model_meta(r->model, "squeezellm.method"));
    json_string(w, "calibration", sq_model_meta(r->model, "squeezellm.calibration"));
    json_number(w, "bits_per_weight", i->bits_per_weight);
    json_number(w, "sparse_share", i->sparse_share);
    json_u64(w, "token_bytes", i->token_bytes);
    json_u64(w, "n_ctx", r->n_ctx);
    json_string(w, "kv", r->kv);
    json_u64(w, "weight_bytes", r->weight_bytes);
    json_u64(w, "kv_bytes", r->kv_bytes);
    json_u64(w, "memory_bytes", r->weight_bytes + r->kv_bytes);
    json_string(w, "tokenizer", sq_model_meta(r->model, "tokenizer.ggml.model"));
    json_bool(w, "chat", !r->chat_problem);
    json_string(w, "chat_problem", r->chat_problem);
    json_string(w, "cpu", i->cpu);
    json_string(w, "prompt_arithmetic", i->prompt);
}

static bool write_tensors(json_writer *w, const sq_model *model, sq_error *error) {
    json_open(w, "tensors", '[');
    for (size_t i = 0; i < sq_model_n_tensors(model); i++) {
        sq_tensor_info t;
        if (sq_model_get_tensor(model, i, &t, error)) {
            return false;
        }
        json_open(w, NULL, '{');
        json_string(w, "name", t.name);
        json_string(w, "type", t.type);
        json_u64(w, "n_out", t.n_out);
        json_u64(w, "n_in", t.n_in);
        json_u64(w, "n_sparse", t.n_sparse);
        json_u64(w, "bytes", t.bytes);
        json_number(w, "bits", t.bits);
        json_close(w, '}');
    }
    json_close(w, ']');
    return true;
}

/* ---- main ------------------------------------------------------------------------------------ */

static bool append_report(text *out, const report *r, bool json, sq_error *error) {
    if (!json) {
        append_summary(out, r);
        return append_tensor_table(out, r->model, error);
    }
    json_writer w = {.out = *out};
    json_open(&w, NULL, '{');
    write_report(&w, r);
    bool written = write_tensors(&w, r->model, error);
    if (written) {
        json_close(&w, '}');
    }
    *out = w.out;
    return written;
}

static int inspect(report *r, bool json) {
    sq_error error, chat_error;
    sq_model_get_info(r->model, &r->info);
    r->n_ctx = r->n_ctx ? r->n_ctx : r->info.n_ctx_train;
    r->kv_bytes = sq_model_kv_bytes(r->model, r->n_ctx, r->kv);
    r->chat_problem = sq_chat_check(r->model, &chat_error) ? chat_error.message : NULL;
    text out = {0};
    for (size_t i = 0; i < sq_model_n_tensors(r->model); i++) {
        sq_tensor_info t;
        r->weight_bytes += sq_model_get_tensor(r->model, i, &t, NULL) ? 0 : t.bytes;
    }
    if (!append_report(&out, r, json, &error)) {
        tool_complain(tool_name, "%s", error.message);
        text_free(&out);
        return 1;
    }
    return tool_print(tool_name, &out);
}

int main(int argc, char **argv) {
    report r = {.kv = "f16"};
    bool json = false;
    const option options[] = {
        {"--ctx", OPTION_U32, &r.n_ctx, 1, INT32_MAX, "TOKENS",
         "context for the memory figure; default: what the model was trained for"},
        {"--kv", OPTION_CHOICE, &r.kv, 0, 0, "f16|q8|f32", "precision of the KV cache, default f16"},
        {"--json", OPTION_FLAG, &json, 0, 0, NULL, "print JSON, with every tensor on its own"},
    };
    const tool t = {.name = tool_name,
                    .about = "Shows what is in a model file, and what it takes to run it. MB are 10^6 bytes.",
                    .arguments = "MODEL.sq.gguf",
                    .n_arguments = 1,
                    .options = options,
                    .n_options = sizeof options / sizeof options[0]};
    int code = options_parse(&t, argc, argv, &r.path);
    if (code >= 0) {
        return code;
    }
    tool_ignore_closed_pipes();
    const sq_model_options model_options = {.device = "cpu"}; /* nothing runs */
    sq_model *model;
    sq_error error;
    if (!tool_check(tool_name, sq_model_open(r.path, &model_options, &model, &error), &error)) {
        return 1;
    }
    r.model = model;
    code = inspect(&r, json);
    sq_model_close(model);
    return code;
}
