#include "profile.h"

static const char *const kinds[SQ_N_TIMES] = {
    [SQ_TIME_EMBED] = "embedding",
    [SQ_TIME_QKV] = "query, key, value",
    [SQ_TIME_CACHE] = "rotation, cache",
    [SQ_TIME_ATTENTION] = "attention",
    [SQ_TIME_ATTN_OUTPUT] = "attention output",
    [SQ_TIME_FFN_UP] = "ffn gate, up",
    [SQ_TIME_FFN_DOWN] = "ffn down",
    [SQ_TIME_EXPERTS] = "experts",
    [SQ_TIME_HEAD] = "head",
    [SQ_TIME_DEVICE] = "GPU",
    [SQ_TIME_WAITING] = "waiting",
};

/* What has passed since the last operation ended belongs to this one, but for the time that the thread
 * waited. Only thread 0, the caller's, looks at the clock. */
static void lap(const sq_run *run, uint32_t thread, sq_operation operation) {
    if (thread != 0)
        return;
    sq_profile *p = run->profile;
    double now = sq_clock_seconds(), waited = sq_pool_waited();
    p->times[SQ_TIME_WAITING].seconds += waited - p->last_waited;
    p->times[operation].seconds += now - p->last - (waited - p->last_waited);
    p->last = now;
    p->last_waited = waited;
}

static void embed(sq_run *run, uint32_t thread) {
    if (thread == 0) {
        run->profile->last = sq_clock_seconds();
        run->profile->last_waited = sq_pool_waited();
    }
    sq_backend_cpu.embed(run, thread);
    lap(run, thread, SQ_TIME_EMBED);
}

static void norm_linears(sq_run *run, const sq_norm *norm, const sq_linear *const *linears,
                         const sq_rows *const *outs, uint32_t n, uint32_t thread) {
    sq_backend_cpu.norm_linears(run, norm, linears, outs, n, thread);
    lap(run, thread, SQ_TIME_QKV);
}

static void rope_store(sq_run *run, uint32_t layer, uint32_t thread) {
    sq_backend_cpu.rope_store(run, layer, thread);
    lap(run, thread, SQ_TIME_CACHE);
}

static void attend(sq_run *run, uint32_t layer, uint32_t thread) {
    sq_backend_cpu.attend(run, layer, thread);
    lap(run, thread, SQ_TIME_ATTENTION);
}

static void linear_add(sq_run *run, const sq_linear *linear, const sq_rows *in, const sq_norm *out,
                       const sq_norm *after, uint32_t thread) {
    sq_backend_cpu.linear_add(run, linear, in, out, after, thread);
    lap(run, thread, in == &run->attended ? SQ_TIME_ATTN_OUTPUT : SQ_TIME_FFN_DOWN);
}

static void ffn_up(sq_run *run, const sq_norm *norm, const sq_layer *layer, uint32_t thread) {
    sq_backend_cpu.ffn_up(run, norm, layer, thread);
    lap(run, thread, SQ_TIME_FFN_UP);
}

static void experts_add(sq_run *run, const sq_norm *norm, const sq_layer *layer, uint32_t thread) {
    sq_backend_cpu.experts_add(run, norm, layer, thread);
    lap(run, thread, SQ_TIME_EXPERTS);
}

static void logits(sq_run *run, const sq_norm *norm, const sq_linear *head, uint32_t thread) {
    sq_backend_cpu.logits(run, norm, head, thread);
    lap(run, thread, SQ_TIME_HEAD);
}

static const sq_backend profiled_cpu = {
    .name = "cpu",
    .embed = embed,
    .norm_linears = norm_linears,
    .rope_store = rope_store,
    .attend = attend,
    .linear_add = linear_add,
    .ffn_up = ffn_up,
    .experts_add = experts_add,
    .logits = logits,
};

void sq_profile_device(sq_profile *profile, double start) {
    profile->times[SQ_TIME_DEVICE].seconds += sq_clock_seconds() - start;
}

void sq_profile_init(sq_profile *profile, sq_run *run) {
    *profile = (sq_profile){0};
    for (int i = 0; i < SQ_N_TIMES; i++)
        profile->times[i].kind = kinds[i];
    run->profile = profile;
    run->backend = &profiled_cpu;
    sq_pool_time_waits(run->pool);
}
