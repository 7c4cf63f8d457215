/* The table of kernels this processor runs fastest, or the one requested. */
#include <string.h>
#include <unistd.h>
#include "../kernels.h"
#ifdef HAVE_avx2
#include <cpuid.h>
#endif
#ifdef HAVE_amx
#include <sys/syscall.h>
#endif

const kernels *kernels_of[2];
void *blas_gemm[2];
idx second_cache = 1 << 20;

#define TRY(name, runs)                                                                          \
    extern const kernels kernels_32_##name, kernels_64_##name;                                   \
    if ((!*isa || !strcmp(isa, #name)) && (runs)) {                                              \
        kernels_of[0] = &kernels_32_##name, kernels_of[1] = &kernels_64_##name;                  \
        return #name;                                                                            \
    }

#ifdef HAVE_avx2
static int f16c(void) {                            /* not every compiler's __builtin_cpu_supports knows it */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

#define AVX512                                                                                   \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                  \
     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))

#ifdef HAVE_amx
/* On Linux a process that wants tiles has to ask, once for all of its threads. */
static int amx(void) {
    enum { ASK = 0x1023, TILES = 18, HAS_TILES = 1 << 24, HAS_BYTES = 1 << 25 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & HAS_TILES && d & HAS_BYTES &&
           !syscall(SYS_arch_prctl, ASK, TILES);
}
#endif

const char *kernels_init(const char *isa) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    if (sysconf(_SC_LEVEL2_CACHE_SIZE) > 0) second_cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
#ifdef HAVE_avx2
    __builtin_cpu_init();
#endif
#ifdef HAVE_amx
    TRY(amx, AVX512 && __builtin_cpu_supports("avx512vnni") && amx())
#endif
#ifdef HAVE_avx512vnni
    TRY(avx512vnni, AVX512 && __builtin_cpu_supports("avx512vnni"))
#endif
#ifdef HAVE_avx512
    TRY(avx512, AVX512)
#endif
#ifdef HAVE_avx2
    TRY(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c())
#endif
    TRY(baseline, 1)
    return NULL;
}
