/* The CUDA dialect for a C++ compiler: g++ puts this in front of a kernel's text, which stays as it is.
 *
 * (a) Nothing is included, as under NVRTC: text that leans on a header fails here too, and a module
 *     compiles in a tenth of the time that <cmath> alone would take.
 * (b) Only overloads that CUDA has.  fmax(x, 0.0) of a float x and min(n, i) of a long long and an
 *     int are ambiguous there, so they are here.  What is missing on purpose: __threadfence, for the
 *     checker knows no order between blocks, and the intrinsics of fast-math.
 * (c) threadIdx and its like are constants to a kernel and variables to the runtime, which sets them
 *     whenever a thread gets the floor.
 * (d) A __shared__ array is a static of the section cuda_shared, so the runtime can poison all of
 *     them before each block.  In the checked build they lie 64 KiB apart, more than a block may
 *     have: an overrun ends between two of them, not in its neighbor.
 * (e) gcc ignores the section in templates: a template with __shared__ is not supported.  Nor can
 *     `extern __shared__` be imitated: DYN_SHARED(type, name) stands for it.
 * (f) Where a barrier or a warp primitive stands is a default argument: threads that meet must have
 *     come to the same line.
 */
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#ifdef __SANITIZE_THREAD__
#define __shared__ static __attribute__((section("cuda_shared"), aligned(1 << 16)))
#else
#define __shared__ static __attribute__((section("cuda_shared"), aligned(16)))
#endif
#define DYN_SHARED(type, name) type *const name = (type *)executor::dynamic_shared

typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;
#define VECTORS(type, name, align2, align4) \
    struct __align__(align2) name##2 { type x, y; }; \
    struct __align__(align4) name##4 { type x, y, z, w; }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(float, float, 8, 16)
VECTORS(double, double, 16, 16)
VECTORS(int, int, 8, 16)
VECTORS(unsigned, uint, 8, 16)

/* ---- what runtime.cpp provides ---- */

extern "C" const uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace executor {
enum Primitive { SYNCTHREADS, SYNCWARP, SHFL, SHFL_XOR, SHFL_UP, SHFL_DOWN, BALLOT, ANY, ALL };
extern const int lane;
extern char dynamic_shared[];
unsigned long long exchange(Primitive, unsigned mask, unsigned long long bits, int source,
                            const char *file, int line);
unsigned vote(Primitive, unsigned mask, bool predicate, const char *file, int line);
}

void __syncthreads(HERE);
void __syncwarp(unsigned mask = 0xffffffff, HERE);
int atomicAdd(int *at, int value);
unsigned atomicAdd(unsigned *at, unsigned value);
unsigned long long atomicAdd(unsigned long long *at, unsigned long long value);
float atomicAdd(float *at, float value);
double atomicAdd(double *at, double value);

/* ---- warp primitives ---- */

namespace executor {
template <class T>
__forceinline__ T shuffle(Primitive p, unsigned mask, T value, int source, const char *file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles int, long long, float and double");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = exchange(p, mask, bits, source, file, line);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
__forceinline__ int first(int width) { return lane & -width; }         /* lane of the group of `width` lanes */
}

template <class T> __forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32, HERE) {
    return executor::shuffle(executor::SHFL, mask, value, executor::first(width) + (source & (width - 1)), file, line);
}
template <class T> __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, HERE) {
    int source = executor::lane ^ bits, end = executor::first(width) + width;
    return executor::shuffle(executor::SHFL_XOR, mask, value, source < end ? source : executor::lane, file, line);
}
template <class T> __forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, HERE) {
    int source = executor::lane - (int)by;
    source = source >= executor::first(width) ? source : executor::lane;
    return executor::shuffle(executor::SHFL_UP, mask, value, source, file, line);
}
template <class T> __forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, HERE) {
    int source = executor::lane + (int)by, end = executor::first(width) + width;
    return executor::shuffle(executor::SHFL_DOWN, mask, value, source < end ? source : executor::lane, file, line);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, HERE) {
    return executor::vote(executor::BALLOT, mask, predicate, file, line);
}
__forceinline__ int __any_sync(unsigned mask, int predicate, HERE) {
    return executor::vote(executor::ANY, mask, predicate, file, line) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate, HERE) {
    return executor::vote(executor::ALL, mask, predicate, file, line) == mask;
}

/* ---- arithmetic ---- */

#define UNARY(name) extern "C" double name(double); extern "C" float name##f(float); \
    inline float name(float x) { return name##f(x); }
#define BINARY(name) extern "C" double name(double, double); extern "C" float name##f(float, float); \
    inline float name(float x, float y) { return name##f(x, y); }
UNARY(exp) UNARY(exp2) UNARY(expm1) UNARY(log) UNARY(log2) UNARY(log10) UNARY(log1p) UNARY(sqrt) UNARY(cbrt)
UNARY(sin) UNARY(cos) UNARY(tan) UNARY(sinh) UNARY(cosh) UNARY(tanh) UNARY(erf) UNARY(erfc)
UNARY(fabs) UNARY(floor) UNARY(ceil) UNARY(trunc) UNARY(round) UNARY(rint)
BINARY(fmax) BINARY(fmin) BINARY(fmod) BINARY(pow) BINARY(copysign)
extern "C" double fma(double, double, double);
extern "C" float fmaf(float, float, float);
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }

#define SMALLER_AND_LARGER(type, a, b) \
    inline type min(a x, b y) { return (type)x < (type)y ? (type)x : (type)y; } \
    inline type max(a x, b y) { return (type)x > (type)y ? (type)x : (type)y; }
#define WHOLE(type) \
    SMALLER_AND_LARGER(type, type, type) SMALLER_AND_LARGER(unsigned type, unsigned type, unsigned type) \
    SMALLER_AND_LARGER(unsigned type, type, unsigned type) SMALLER_AND_LARGER(unsigned type, unsigned type, type)
WHOLE(int) WHOLE(long) WHOLE(long long)
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
extern "C" int abs(int);
inline long abs(long x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }

#define ASKS(f) inline bool f(float x) { return __builtin_##f(x); } inline bool f(double x) { return __builtin_##f(x); }
ASKS(isnan) ASKS(isinf) ASKS(isfinite) ASKS(signbit)

inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned long long)x * y >> 32; }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned __int128)x * y >> 64;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
template <class T> __forceinline__ T __ldg(const T *at) { return *at; }

/* ---- what Python asks of a kernel; build.py appends an entry for each ---- */

namespace executor {
template <class T> struct kind;                      /* a parameter that is none of these does not compile */
#define KIND(type, letter) template <> struct kind<type> { static constexpr char value = letter; };
KIND(float, 'f') KIND(double, 'f') KIND(bool, 'b')
KIND(char, 'i') KIND(signed char, 'i') KIND(short, 'i') KIND(int, 'i') KIND(long, 'i') KIND(long long, 'i')
KIND(unsigned char, 'u') KIND(unsigned short, 'u') KIND(unsigned, 'u') KIND(unsigned long, 'u')
KIND(unsigned long long, 'u')

struct Parameter { char pointer, kind, bytes; };
template <class T> struct parameter { static constexpr Parameter value = {0, kind<T>::value, sizeof(T)}; };
template <class T> struct parameter<const T> : parameter<T> {};
template <class T> struct parameter<T *> { static constexpr Parameter value = {1, kind<T>::value, sizeof(T)}; };
template <class T> struct parameter<const T *> : parameter<T *> {};
template <class T> struct parameter<T *__restrict__> : parameter<T *> {};

struct Entry {
    void (*run)(void **args);                        /* one thread */
    const Parameter *parameters;
    int count, max_threads;
};

#define UNSEEN __attribute__((no_sanitize("thread", "undefined")))
template <class... P> struct Call {                  /* its braces evaluate the arguments in order */
    UNSEEN Call(void (*kernel)(P...), P... args) { kernel(args...); }
};
template <class P> UNSEEN P next(void **&args) { return *(P *)*args++; }
template <auto kernel, class... P> struct Kernel {
    static constexpr Parameter parameters[] = {parameter<P>::value..., {}};
    UNSEEN static void run(void **args) { Call<P...>{kernel, next<P>(args)...}; }
};
template <auto kernel, class... P> constexpr Entry entry(void (*)(P...), int max_threads) {
    return {Kernel<kernel, P...>::run, Kernel<kernel, P...>::parameters, sizeof...(P), max_threads};
}
constexpr int bound(int max_threads = 1024, int = 0, int = 0) { return max_threads; }     /* of __launch_bounds__ */
}
#define CUDA_ON_CPU_ENTRY(kernel, ...) extern "C" __attribute__((visibility("default"))) \
    const executor::Entry entry_##kernel = executor::entry<kernel>(kernel, executor::bound(__VA_ARGS__));

#undef VECTORS
#undef HERE
#undef UNARY
#undef BINARY
#undef SMALLER_AND_LARGER
#undef WHOLE
#undef ASKS
#undef KIND
#undef UNSEEN
