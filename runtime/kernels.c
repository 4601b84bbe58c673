/* Which table of kernels runs on this machine. */
#include "scalar.h"
#include "status.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Not known to every compiler's __builtin_cpu_supports. */
static bool has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

/* The built-ins also ask whether the operating system saves the wide registers. */
bool sq_cpu_has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool sq_cpu_has_avxvnni(void) {
    unsigned eax, ebx, ecx, edx;
    return sq_cpu_has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

bool sq_cpu_has_avx512(void) {
    return sq_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool sq_cpu_has_avx512vnni(void) {
    return sq_cpu_has_avx512() && __builtin_cpu_supports("avx512vnni");
}

bool sq_cpu_streams_into_l1;

/* Zen 5 (AMD's family 26) generates 5 % faster so; Zen 4 15 to 50 % slower. When the library is loaded, so
 * that threads need not agree on who looks. */
__attribute__((constructor)) static void look_for_zen5(void) {
    enum { ZEN5_FAMILY = 26 };
    unsigned eax, ebx, ecx, edx;
    bool amd = __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_AMD_ebx;
    if (amd && __get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        sq_cpu_streams_into_l1 = (eax >> 8 & 0xf) + (eax >> 20 & 0xff) == ZEN5_FAMILY;
    }
}
#endif

/* Fastest first. */
static const sq_kernels *const all_kernels[] = {
#if defined(__x86_64__)
    &sq_kernels_avx512vnni, &sq_kernels_avx512, &sq_kernels_avxvnni, &sq_kernels_avx2,
#elif defined(__aarch64__)
    &sq_kernels_dotprod,
    &sq_kernels_neon,
#endif
    &sq_kernels_scalar,
};

sq_status sq_kernels_choose(const char *cpu, const sq_kernels **kernels, sq_error *error) {
    bool any = !cpu || strcmp(cpu, "auto") == 0;
    *kernels = NULL;
    for (size_t i = 0; i < sizeof all_kernels / sizeof *all_kernels; i++) {
        const sq_kernels *k = all_kernels[i];
        if (any ? k->supported() : strcmp(cpu, k->name) == 0) {
            if (!k->supported()) {
                return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                               "this processor has no %s instructions; use \"auto\" or \"scalar\"", cpu);
            }
            *kernels = k;
            return SQ_OK;
        }
    }
    return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                   "no kernels for \"%s\" in this build; expected auto, scalar, avx2, avxvnni, avx512, "
                   "avx512vnni, neon or dotprod",
                   cpu);
}
