/* The table of kernels this processor runs fastest, or the one requested. */
#include <string.h>
#include <unistd.h>
#include "../kernels.h"
#if defined __x86_64__ || defined __i386__
#include <cpuid.h>
#endif
#ifdef HAVE_amx
#include <sys/syscall.h>
#endif

const kernels *kernels_of[3];
void *blas_gemm[2];
idx second_cache = 1 << 20;

/* setup.py defines HAVE_amx where it has built that instruction set, and OBJECT_64_amx avx512, say, where
 * doubles gain nothing by it: then it shares the table of a lower one. */
#define PASTE(real, isa) kernels_##real##_##isa
#define TABLE(real, isa) PASTE(real, isa)
#define TRY(name, runs)                                                                          \
    extern const kernels TABLE(32, OBJECT_32_##name), TABLE(64, OBJECT_64_##name),               \
        TABLE(16, OBJECT_16_##name);                                                             \
    if ((!*isa || !strcmp(isa, #name)) && (runs)) {                                              \
        kernels_of[0] = &TABLE(32, OBJECT_32_##name);                                            \
        kernels_of[1] = &TABLE(64, OBJECT_64_##name);                                            \
        kernels_of[2] = &TABLE(16, OBJECT_16_##name);                                            \
        return #name;                                                                            \
    }

#ifdef bit_F16C                                    /* not every compiler's __builtin_cpu_supports knows it */
static inline int f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

static inline int bf16(void) {
    enum { HAS_BF16 = 1 << 5 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & HAS_BF16;
}
#endif

#define AVX512                                                                                   \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                  \
     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))

#define VNNI (AVX512 && __builtin_cpu_supports("avx512vnni"))

#ifdef HAVE_amx
/* On Linux a process that wants tiles has to ask, once for all of its threads. */
static int amx(void) {
    enum { ASK = 0x1023, TILES = 18, HAS_BF16 = 1 << 22, HAS_TILES = 1 << 24, HAS_BYTES = 1 << 25,
           NEEDED = HAS_BF16 | HAS_TILES | HAS_BYTES };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & NEEDED) == NEEDED &&
           !syscall(SYS_arch_prctl, ASK, TILES);
}
#endif

const char *kernels_init(const char *isa) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    if (sysconf(_SC_LEVEL2_CACHE_SIZE) > 0) second_cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
#ifdef bit_F16C
    __builtin_cpu_init();
#endif
#ifdef HAVE_amx
    TRY(amx, VNNI && bf16() && amx())
#endif
#ifdef HAVE_avx512bf16
    TRY(avx512bf16, VNNI && bf16())
#endif
#ifdef HAVE_avx512vnni
    TRY(avx512vnni, VNNI)
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
