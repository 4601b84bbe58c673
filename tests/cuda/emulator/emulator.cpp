/* Fibers and launches of the emulated CUDA runtime: cuda_runtime.h. */
#include "cuda_runtime.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <ucontext.h>
#include <vector>

#if defined __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

enum { WARP = 32, MAX_THREADS = 1024, STACK_BYTES = 64 << 10, SLOT_BYTES = 64, MAX_SHARED_BYTES = 99 << 10 };

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "CUDA emulator: %s\n", what);
    abort();
}

/* ---- switching --------------------------------------------------------------------------------- */

/* On x86-64 a switch is a handful of instructions; ucontext, which asks the kernel, serves all else. Under
 * ASan both tell it which stack is in use. */
struct context {
    void *stack_pointer;
    ucontext_t other;
    const void *stack;
    size_t stack_bytes;
    void *asan_state;
};

#if defined __x86_64__
extern "C" void emulated_switch(void **save, void *load);
asm(".text\n.type emulated_switch, @function\nemulated_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nretq\n"
    ".size emulated_switch, .-emulated_switch\n");
#endif

void switch_to(context *from, context *to, bool from_ends) {
#if defined __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(from_ends ? nullptr : &from->asan_state, to->stack, to->stack_bytes);
#endif
    (void)from_ends;
#if defined __x86_64__
    emulated_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->other, &to->other);
#endif
#if defined __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->asan_state, nullptr, nullptr);
#endif
}

void context_create(context *c, uint8_t *stack, void (*entry)()) {
    c->stack = stack;
    c->stack_bytes = STACK_BYTES;
#if defined __x86_64__
    void **top = (void **)(stack + STACK_BYTES) - 2;
    *top = (void *)entry; /* where the first switch returns to, with the stack aligned as after a call */
    c->stack_pointer = top - 6;
    memset(c->stack_pointer, 0, 6 * sizeof *top);
#else
    getcontext(&c->other);
    c->other.uc_stack.ss_sp = stack;
    c->other.uc_stack.ss_size = STACK_BYTES;
    c->other.uc_link = nullptr;
    makecontext(&c->other, entry, 0);
#endif
}

/* ---- a block ----------------------------------------------------------------------------------- */

enum state { READY, AT_WARP, AT_BLOCK, DONE };

struct fiber {
    context c;
    dim3 thread;
    state at;
    unsigned index, n_exchanges;
};

struct machine {
    context main;
    std::unique_ptr<fiber[]> fibers{new fiber[MAX_THREADS]};
    std::unique_ptr<uint8_t[]> stacks{new uint8_t[(size_t)MAX_THREADS * STACK_BYTES]};
    /* Two sets, so that a fast lane's next operation does not overwrite what a slow one still reads. */
    uint8_t slots[2][MAX_THREADS][SLOT_BYTES];
    std::unique_ptr<uint8_t[]> shared;
    unsigned n_threads;
    const std::function<void()> *kernel;
};

thread_local std::unique_ptr<machine> the_machine;
bool reverse_order;
thread_local fiber *current;

void fiber_entry() {
#if defined __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &the_machine->main.stack, &the_machine->main.stack_bytes);
#endif
    (*the_machine->kernel)();
    fiber *f = current;
    f->at = DONE;
    switch_to(&f->c, &the_machine->main, true);
}

void wait(state at) {
    fiber *f = current;
    f->at = at;
    switch_to(&f->c, &the_machine->main, false);
}

unsigned turn(unsigned i, unsigned n) {
    return reverse_order ? n - 1 - i : i;
}

/* Runs the lanes of a warp until all of them wait at the block's barrier or are done. */
void warp_run(machine *m, unsigned warp) {
    unsigned first = warp * WARP, n = std::min<unsigned>(m->n_threads - first, WARP);
    for (;;) {
        unsigned count[4] = {};
        for (unsigned i = 0; i < n; i++) {
            fiber *f = &m->fibers[first + turn(i, n)];
            if (f->at == READY) {
                current = f;
                threadIdx = f->thread;
                switch_to(&m->main, &f->c, false);
            }
            count[f->at]++;
        }
        if (!count[AT_WARP])
            return;
        if (count[AT_WARP] != WARP)
            die("a warp operation that not all 32 lanes reach");
        for (unsigned i = 0; i < n; i++)
            m->fibers[first + i].at = READY;
    }
}

void block_run(machine *m, dim3 block, dim3 grid, dim3 size, size_t shared_bytes) {
    m->shared.reset(new uint8_t[shared_bytes]);
    memset(m->shared.get(), 0xff, shared_bytes); /* NaNs, whatever it is read as */
    m->n_threads = size.x * size.y * size.z;
    blockIdx = block;
    blockDim = size;
    gridDim = grid;
    for (unsigned i = 0; i < m->n_threads; i++) {
        fiber *f = &m->fibers[i];
        f->thread = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
        f->at = READY;
        f->index = i;
        f->n_exchanges = 0;
        context_create(&f->c, m->stacks.get() + (size_t)i * STACK_BYTES, fiber_entry);
    }
    unsigned n_warps = (m->n_threads + WARP - 1) / WARP, n_done = 0;
    while (n_done < m->n_threads) {
        for (unsigned w = 0; w < n_warps; w++)
            warp_run(m, turn(w, n_warps));
        n_done = 0;
        for (unsigned i = 0; i < m->n_threads; i++) {
            n_done += m->fibers[i].at == DONE;
            if (m->fibers[i].at == AT_BLOCK)
                m->fibers[i].at = READY;
        }
        if (n_done && n_done < m->n_threads)
            die("a barrier of the block that some threads never reach");
    }
}

void launch_run(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()> &kernel) {
    if (!the_machine)
        the_machine.reset(new machine);
    the_machine->kernel = &kernel;
    unsigned n = grid.x * grid.y * grid.z;
    for (unsigned i = 0; i < n; i++) {
        unsigned b = turn(i, n);
        block_run(the_machine.get(), dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)), grid, size,
                  shared_bytes);
    }
}

} // namespace

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

void *emulated_shared() {
    return the_machine->shared.get();
}

void __syncthreads() {
    wait(AT_BLOCK);
}

void __syncwarp(unsigned) {
    wait(AT_WARP);
}

const uint8_t *emulated_exchange(const void *mine, size_t n_bytes, size_t *stride) {
    fiber *f = current;
    uint8_t (*slots)[SLOT_BYTES] = the_machine->slots[f->n_exchanges++ % 2];
    if (n_bytes > SLOT_BYTES)
        die("an operand larger than a slot");
    memcpy(slots[f->index], mine, n_bytes);
    wait(AT_WARP);
    *stride = SLOT_BYTES;
    return slots[f->index / WARP * WARP];
}

unsigned emulated_lane() {
    return current->index % WARP;
}

extern "C" void sq_emulator_reverse(bool reverse) {
    reverse_order = reverse;
}

static struct {
    cudaError_t result;
    int n_cards, major;
    size_t n_bytes_free;
} card = {cudaSuccess, 1, 9, (size_t)1 << 30};

extern "C" void sq_emulator_card(int result, int n_cards, int major, size_t n_bytes_free) {
    card = {(cudaError_t)result, n_cards, major, n_bytes_free};
}

/* ---- the host's view --------------------------------------------------------------------------- */

struct emulated_graph {
    std::vector<std::function<void()>> launches;
};
struct emulated_stream {
    emulated_graph *captured;
};
struct emulated_event {
    std::chrono::steady_clock::time_point at;
};

static cudaError_t run_or_record(cudaStream_t stream, std::function<void()> work) {
    if (stream && stream->captured)
        stream->captured->launches.push_back(std::move(work));
    else
        work();
    return cudaSuccess;
}

cudaError_t emulated_launch(const cudaLaunchConfig_t *config, std::function<void()> kernel) {
    dim3 grid = config->gridDim, size = config->blockDim;
    size_t n_threads = (size_t)size.x * size.y * size.z, shared_bytes = config->dynamicSmemBytes;
    if (!n_threads || n_threads > MAX_THREADS || !grid.x || !grid.y || !grid.z || grid.y > 65535 ||
        grid.z > 65535 || shared_bytes > MAX_SHARED_BYTES)
        return cudaErrorInvalidConfiguration;
    return run_or_record(config->stream, [=] { launch_run(grid, size, shared_bytes, kernel); });
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation       ? "out of memory"
           : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                    : "emulated error";
}
cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n) {
    *n = card.n_cards;
    return card.result;
}
cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "CPU, emulating CUDA");
    properties->totalGlobalMem = (size_t)1 << 30;
    properties->major = card.major;
    properties->multiProcessorCount = 3;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
        *value = 3; /* fewer than most matrices have tiles: blocks take several */
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = 100 << 10;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = MAX_SHARED_BYTES;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}
cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_total) {
    *n_free = card.n_bytes_free;
    *n_total = (size_t)1 << 30;
    return cudaSuccess;
}
cudaError_t emulated_malloc(void **p, size_t n_bytes) {
    if (n_bytes > card.n_bytes_free || posix_memalign(p, 256, n_bytes ? n_bytes : 1))
        return cudaErrorMemoryAllocation;
    memset(*p, 0xff, n_bytes); /* as in shared memory */
    return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
    free(p);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p) {
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind, cudaStream_t stream) {
    return run_or_record(stream, [=] { memcpy(to, from, n_bytes); });
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
    return run_or_record(stream, [=] {
        for (size_t y = 0; y < height; y++)
            memcpy((char *)to + y * to_pitch, (const char *)from + y * from_pitch, width);
    });
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream) {
    return run_or_record(stream, [=] { memset(to, value, n_bytes); });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new emulated_stream{};
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return stream && stream->captured ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    stream->captured = new emulated_graph{};
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = stream->captured;
    stream->captured = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new emulated_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (const std::function<void()> &launch : exec->launches)
        launch();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new emulated_event{};
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    event->at = std::chrono::steady_clock::now();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return cudaSuccess;
}
