"""The executor of CUDA kernels runs correct kernels alike in every order of threads, and refuses what CUDA refuses."""
import gc
import re
import threading

import numpy as np
import pytest

from tests.cuda_on_cpu import KernelError, Module, build, memory

needs_compiler = pytest.mark.skipif(bool(build.missing), reason=f"the executor needs {', '.join(build.missing)}")
pytestmark = needs_compiler


def kernels(text):
    """The text with KERNEL(name) written out."""
    return re.sub(r"KERNEL\((\w+)\)", r'extern "C" __global__ void \1(float *y, const float *x, long long n)', text)


def device(x):
    """A copy in device memory."""
    copy = memory.new(x.shape, x.dtype)
    copy[...] = x
    return copy


SOUND = r"""
const unsigned ALL = 0xffffffff;
__device__ const float TABLE[4] = {1, 2, 3, 4};

template <class T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(ALL, v, step);
    return v;
}
__device__ float block_sum(float v) {
    __shared__ float parts[32];
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0);
}
extern "C" __global__ void __launch_bounds__(2 * (64)) sum(float *y, const float *x, long long n) {
    float s = 0;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) s += x[blockIdx.x * n + i];
    s = block_sum(s) + 0 * block_sum(s);
    if (threadIdx.x == 0) y[blockIdx.x] = s;
}
extern "C" __global__ void transpose(float *y, const float *x, long long n) {
    DYN_SHARED(float, tile);
    int i = threadIdx.x, j = threadIdx.y;
    tile[j * 9 + i] = x[(blockIdx.y * 8 + j) * n + blockIdx.x * 8 + i];
    __syncthreads();
    y[(blockIdx.x * 8 + j) * n + blockIdx.y * 8 + i] = tile[i * 9 + j];
}
extern "C" __global__ void count(int *y, const int *x, long long n) {
    __shared__ int here[4];
    if (threadIdx.x < 4) here[threadIdx.x] = 0;
    __syncthreads();
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(here + x[i], 1);
    __syncthreads();
    if (threadIdx.x < 4) atomicAdd(y + threadIdx.x, here[threadIdx.x]);
}
extern "C" __global__ void by_fours(float *y, const float *x, long long n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n / 4) return;
    float4 v = ((const float4 *)x)[i];
    ((float4 *)y)[i] = make_float4(v.x * TABLE[0], v.y * TABLE[1], v.z * TABLE[2], v.w * TABLE[3]);
}
extern "C" __global__ void neighbors(float *y, const float *x, long long n) {
    __shared__ float a[64];
    a[threadIdx.x] = x[threadIdx.x];
    unsigned half = threadIdx.x & 16 ? 0xffff0000 : 0xffff;
    __syncwarp(half);
    y[threadIdx.x] = a[threadIdx.x ^ 1] + __shfl_xor_sync(half, 0.f, 3);
}
extern "C" __global__ void relay(float *y, const float *x, long long n) {
    __shared__ float a;
    if (threadIdx.x == 0) a = x[0];
    if (threadIdx.x <= 1) __syncwarp(0x3);
    if (threadIdx.x == 1 || threadIdx.x == 2) __syncwarp(0x6);
    if (threadIdx.x == 2) y[0] = a;
}
"""
X = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
DIGITS = np.random.default_rng(1).integers(0, 4, 1000, np.int32)
EACH_ORDER = [("forward", 0), ("reverse", 0), ("random", 0), ("random", 1)]

# kernel: arguments but the result, the result, its relative error, and the launch
CLEAN = {
    "sum": ((X, 64), X.astype(float).sum(1), 64 * 2.0**-24 * abs(X).sum(1), dict(grid=(16,), block=(128,))),
    "transpose": ((X[:, :16], 16), X[:, :16].T, 0, dict(grid=(2, 2), block=(8, 8), shared_mem=8 * 9 * 4)),
    "count": ((DIGITS, 1000), np.bincount(DIGITS).astype(np.int32), 0, dict(grid=(8,), block=(128,))),
    "by_fours": ((X, X.size), X * np.tile(np.arange(1, 5, dtype=np.float32), 16), 0, dict(grid=(3,), block=(96,))),
    "relay": ((X[0], 64), X[0, :1], 0, dict(block=(32,))),
    "neighbors": ((X[0], 64), X[0].reshape(-1, 2)[:, ::-1].ravel(), 0, dict(block=(64,))),
}


@pytest.fixture(scope="module")
def sound():                                                # [fast, checked]
    return [Module(SOUND, checked=checked) for checked in (False, True)]


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("name", CLEAN)
def test_sound_kernels_give_the_same_bits_in_every_order(name, checked, sound):
    (x, n), expected, error, options = CLEAN[name]
    results = []
    for order, seed in EACH_ORDER:
        y = device(np.zeros_like(expected, x.dtype))
        sound[checked].get_function(name)(args=(y, device(x), n), order=order, seed=seed, **{"grid": (1,)} | options)
        results.append(y.tobytes())
    assert (abs(y - expected) <= error).all()
    assert len(set(results)) == 1


def test_order_is_forward_or_reverse_or_any(sound):
    """Who comes last leaves its mark: the orders are what they say, and random ones differ."""
    module = Module(kernels("KERNEL(last) { y[0] = blockIdx.x * blockDim.x + threadIdx.x; }"))
    x, last = device(X), []
    for order, seed in EACH_ORDER:
        module.get_function("last")((8,), (32,), (x, x, 0), order=order, seed=seed)
        last.append(int(x[0, 0]))
    assert last[:2] == [255, 0]
    assert len(set(last)) == 4


SHUFFLES = r"""
extern "C" __global__ void shuffles(number *y, long long n) {
    const unsigned ALL = 0xffffffff;
    int l = threadIdx.x;
    number v = (number)l * SCALE;
    number results[] = {__shfl_sync(ALL, v, l + 3), __shfl_sync(ALL, v, 11, 8), __shfl_xor_sync(ALL, v, 5),
                        __shfl_xor_sync(ALL, v, 9, 8), __shfl_up_sync(ALL, v, 3), __shfl_up_sync(ALL, v, 3, 8),
                        __shfl_down_sync(ALL, v, 3), __shfl_down_sync(ALL, v, 3, 8)};
    for (int i = 0; i < 8; i++) y[i * 32 + l] = results[i];
    y[8 * 32 + l] = __ballot_sync(ALL, l % 3 == 0) % 65536;
    y[9 * 32 + l] = __any_sync(ALL, l == 7) + 2 * __any_sync(ALL, l == 32);
    y[10 * 32 + l] = __all_sync(ALL, l < 32) + 2 * __all_sync(ALL, l < 31);
}
"""


@pytest.mark.parametrize(("number", "dtype", "scale"), [
    ("float", np.float32, 1.5), ("double", np.float64, 1 + 2.0**-40), ("int", np.int32, -3),
    ("long long", np.int64, 1 << 40)])
def test_warp_primitives_follow_the_programming_guide(number, dtype, scale):
    lane = np.arange(32)
    up, down = np.where(lane >= 3, lane - 3, lane), np.where(lane < 29, lane + 3, lane)
    up8, down8 = np.where(lane % 8 >= 3, lane - 3, lane), np.where(lane % 8 < 5, lane + 3, lane)
    earlier = np.where(lane ^ 9 < lane // 8 * 8 + 8, lane ^ 9, lane)        # a later group's numbers are not to be had
    sources = [(lane + 3) % 32, lane // 8 * 8 + 3, lane ^ 5, earlier, up, up8, down, down8]
    y = memory.new((11, 32), dtype)
    module = Module(SHUFFLES, options=(f"-Dnumber={number}", f"-DSCALE=((number){scale!r})"), checked=True)
    module.get_function("shuffles")((1,), (32,), (y, 0), order="random")
    np.testing.assert_array_equal(y[:8], np.array(sources, dtype) * dtype(scale))
    np.testing.assert_array_equal(y[8:], np.full((3, 32), [[sum(1 << k for k in range(0, 16, 3))], [1], [1]]))


ARITHMETIC = r"""
#define IS_FLOAT(x) static_assert(sizeof(x) == 4, "")
#define IS_DOUBLE(x) static_assert(sizeof(x) == 8, "")
#define BOTH(f) IS_FLOAT(f(x)); IS_DOUBLE(f(z))
#define BOTH2(f) IS_FLOAT(f(x, x)); IS_DOUBLE(f(z, z))
__constant__ double unit = 1;
extern "C" __global__ void types(unsigned long long *y, unsigned long long big, double z) {
    float x = (float)z;
    BOTH(exp); BOTH(log); BOTH(sqrt); BOTH(rsqrt); BOTH(tanh); BOTH(erf); BOTH(erfc); BOTH(fabs); BOTH(floor);
    BOTH(abs); BOTH2(fmax); BOTH2(fmin); BOTH2(pow); BOTH2(max); BOTH2(min);
    IS_FLOAT(fma(x, x, x)); IS_DOUBLE(fma(z, z, z)); IS_FLOAT(expf(x)); IS_FLOAT(rsqrtf(x));
    IS_FLOAT(max(1u, 2)); IS_DOUBLE(min(1ull, 2ll)); IS_DOUBLE(__ldg(&z));
    y[0] = __umul64hi(big, big);
    y[1] = __umulhi((unsigned)big, (unsigned)big);
    y[2] = max(-1, 1u) + min(5ll, 7ll);                     // as in C, -1 is the largest unsigned
    y[3] = __float_as_uint(__int_as_float(__float_as_int(1.5f)));
    y[4] = __double_as_longlong(__longlong_as_double(0x3ff8000000000000)) >> 32;
    y[5] = isinf(exp(100 * x)) + 2 * isfinite(exp(100 * z)) + 4 * (rsqrt(4 * unit) == 0.5) + 8 * isnan(log(-x));
    y[6] = sizeof(float2) + sizeof(float4) + sizeof(double2);
}
"""


def test_arithmetic_is_in_the_precision_of_its_arguments():
    big, y = 2**64 - 3, memory.new(7, np.uint64)
    module = Module(ARITHMETIC, checked=True)
    module.get_function("types")((1,), (1,), (y, np.uint64(big), 1.0))
    low = big % 2**32
    assert y.tolist() == [big * big >> 64, low * low >> 32, 2**32 - 1 + 5, 0x3fc00000, 0x3ff80000, 15, 8 + 16 + 16]


@pytest.mark.parametrize(("line", "complaint"), [
    ("y[0] = z;", "'z' was not declared"),
    ("y[0] = min(n, 1);", "ambiguous"),                     # these five are errors of NVRTC's, too
    ("y[0] = fmax(x[0], 0.0);", "ambiguous"),
    ("y[0] = INFINITY;", "not declared"),
    ("uint32_t i = 0; y[i] = 0;", "not declared|does not name a type"),
    ("threadIdx.x = 0;", "read-only"),
    ("__threadfence();", "not declared"),
    ("for (int i = 0; i < blockDim.x; i++) y[i] = 0;", "different signedness"),
    ("float a; for (int i = 0; i < n; i++) a = i; y[0] = a;", "may be used uninitialized"),
    ("float a; if (n > 3) a = 2; y[0] = a;", "may be used uninitialized"),
    ("float a[20000]; for (int i = 0; i < n; i++) a[i] = x[i]; y[0] = a[n];", "frame size")])
def test_compiler_complains_with_the_lines_of_the_text(line, complaint):
    module = Module('#line 41 "some.cu"\n' + kernels("KERNEL(k) {\n" + line + "\n}"), checked=True)
    with pytest.raises(KernelError, match=rf"some\.cu:4[23]:\d+: error: .*({complaint})"):
        module.get_function("k")


def test_refuses_options_and_kernels_that_it_does_not_know(sound):
    with pytest.raises(ValueError, match=r"the executor understands .* not --use_fast_math"):
        Module(SOUND, options=("-std=c++17", "--use_fast_math")).get_function("sum")
    with pytest.raises(KernelError, match="there is no kernel product among sum, transpose, count"):
        sound[0].get_function("product")


A, WHOLE = np.ones(8, np.float32), np.ones(8, np.int32)


@pytest.mark.parametrize(("grid", "block", "args", "shared_mem", "error"), [
    ((1,), (32,), (A, A), 0, (TypeError, " has 3 parameters and was given 2 arguments")),
    ((1,), (32,), (A, A, 8.0), 0, (TypeError, "argument 2 must be long long, not float")),
    ((1,), (32,), (A, A, True), 0, (TypeError, "argument 2 must be long long, not bool")),
    ((1,), (32,), (A, A, np.int32(8)), 0, (TypeError, "argument 2 must be long long, not int32")),
    ((1,), (32,), (A, A, 2**63), 0, (TypeError, "argument 2 must be long long, not int")),
    ((1,), (32,), (A, WHOLE, 8), 0, (TypeError, r"argument 1 must be float \*, not an array of int32")),
    ((1,), (32,), (A, None, 8), 0, (TypeError, r"argument 1 must be float \*, an array, not NoneType")),
    ((1,), (32,), (8, A, 8), 0, (TypeError, r"argument 0 must be float \*, an array, not int")),
    ((0,), (32,), (A, A, 8), 0, (KernelError, r"the grid \(0,\) is not between 1 and")),
    ((1, 65536), (32,), (A, A, 8), 0, (KernelError, "the grid")),
    ((1,), (1, 1, 65), (A, A, 8), 0, (KernelError, "the block")),
    ((1,), (160,), (A, A, 8), 0, (KernelError, "takes at most 128 threads in a block, not 160")),
    (1, (32,), (A, A, 8), 0, (TypeError, "the grid is a tuple of one to three ints, not 1")),
    ((1,), (32.0,), (A, A, 8), 0, (TypeError, "the block is a tuple")),
    ((1,), (32,), (A, A, 8), 49152, (KernelError, "shared_mem is 49152, but max_dynamic_shared_size_bytes is 49024"))])
def test_refuses_launches_that_cuda_would_not_survive(grid, block, args, shared_mem, error, sound):
    args = [device(a) if isinstance(a, np.ndarray) else a for a in args]
    with pytest.raises(error[0], match=f"^sum.*{error[1]}"):
        sound[0].get_function("sum")(grid, block, tuple(args), shared_mem=shared_mem)


def test_refuses_arrays_of_the_host(sound):
    with pytest.raises(KernelError, match="not in device memory"):
        sound[0].get_function("sum")((1,), (32,), (device(A), A, 8))


def test_memory_is_poisoned_and_aligned():
    for shape, dtype in [((3, 5), np.float32), ((), np.float64), (7, np.int8), ((0, 4), np.float32)]:
        x = memory.new(shape, dtype)
        assert (x.shape, x.dtype) == (np.empty(shape).shape, dtype)
        assert memory.allocation_of(x) == (x.ctypes.data, x.ctypes.data + x.nbytes)
        assert set(x.tobytes()) <= {0xFF}
        assert x.ctypes.data % 256 == 0


def test_views_are_traced_to_their_allocation():
    x = memory.new((4, 6), np.float32)
    low, high = memory.allocation_of(x)
    assert (low, high) == (x.ctypes.data, x.ctypes.data + x.nbytes)
    strided = np.lib.stride_tricks.as_strided(x, (2,), (8,))
    for view in (x[1:], x[::-1], x.T, x[:, 2], x.reshape(-1), x.view(np.int32), x[4:], x[2, 3], strided, x[:0]):
        assert memory.allocation_of(np.asarray(view) if view.shape else x[2:3, 3:4]) == (low, high)
    assert memory.allocation_of(memory.new((4, 6), np.float32)) != (low, high)


def test_what_is_not_device_memory_is_refused():
    x = memory.new(4, np.float32)
    beyond = np.lib.stride_tricks.as_strided(x, (5,), (4,))
    for array in (np.ones(4), beyond):
        with pytest.raises(KernelError, match="not in device memory"):
            memory.allocation_of(array)
    with pytest.raises(TypeError, match="not list"):
        memory.allocation_of([1.0])


def test_memory_is_forgotten_with_its_last_view():
    gc.collect()
    before = len(memory._lows)
    x = memory.new(1000, np.float32)
    view = x[::2]
    del x
    assert len(memory._lows) == before + 1
    del view
    assert len(memory._lows) == len(memory._highs) == before


def test_shared_memory_is_nan_and_so_is_what_no_thread_wrote():
    module = Module(kernels("""KERNEL(half) {
        DYN_SHARED(float, tile);
        __shared__ float own[64];
        if (n < 0) own[threadIdx.x] = 0;
        if (threadIdx.x % 2) y[threadIdx.x] = isnan(tile[threadIdx.x]) && isnan(own[threadIdx.x]);
        tile[threadIdx.x] = 0;
    }"""))
    y = memory.new(64, np.float32)
    module.get_function("half")((3,), (64,), (y, y, 0), shared_mem=256)
    np.testing.assert_array_equal(y, np.where(np.arange(64) % 2, 1, np.nan))


def test_runs_in_place_on_views_and_takes_0_for_a_null_pointer():
    module = Module(kernels("KERNEL(copy) { if (x) y[threadIdx.x] = x[threadIdx.x * n]; }"), checked=True)
    copy, x = module.get_function("copy"), device(np.arange(12, dtype=np.float32).reshape(3, 4))
    copy((1,), (2,), (x[2:, 1:], x[:, 3:], 4))
    assert x[2].tolist() == [8, 3, 7, 11]
    copy((1,), (2,), (x[2:, 1:], 0, 4))
    assert x[2].tolist() == [8, 3, 7, 11]


def test_bytes_are_distinguished_in_an_allocation_that_is_used_as_two_types():
    module = Module('''extern "C" __global__ void k(float *y, signed char *z) {
        z[threadIdx.x] = threadIdx.x;
    }''', checked=True)
    y = memory.new(8, np.float32)
    module.get_function("k")((1,), (32,), (y, y.view(np.int8)))
    assert y.view(np.int8).tolist() == list(range(32))


def test_what_is_left_uninitialized_is_far_from_any_result():
    if build.PATTERN not in build.checked_flags():
        pytest.skip("this compiler is older than GCC 12")
    module = Module(kernels("KERNEL(k) { float a[4]; for (int i = 0; i < 3; i++) a[i] = x[i]; y[0] = a[n]; }"),
                    checked=True)
    y, x = memory.new(4, np.float32), device(np.ones(4, np.float32))
    module.get_function("k")((1,), (1,), (y, x, 3))
    assert abs(y[0]) > 1e38


def test_a_write_beside_an_array_is_reported_once_and_hides_nothing():
    module = Module(kernels("KERNEL(put) { y[n] = 1; } KERNEL(both) { y[n] = 1; if (threadIdx.x) __syncthreads(); }"))
    y = memory.new(4, np.float32)
    with pytest.raises(KernelError, match=r"^synccheck.* thread \(31, 0, 0\)"):
        module.get_function("both")((1,), (32,), (y, y, 5))
    with pytest.raises(KernelError, match=r"4 bytes past the end of the array of argument 0: kernel put$"):
        module.get_function("put")((1,), (1,), (y, y, 5))
    module.get_function("put")((1,), (1,), (y, y, 3))
    assert y[3] == 1


def test_static_and_dynamic_shared_memory_together_are_limited():
    module = Module(kernels("""
        KERNEL(large) { __shared__ float a[12289]; a[n] = x[n]; __syncthreads(); y[0] = a[n + 1]; }
        KERNEL(more) { DYN_SHARED(float, a); a[n] = x[0]; y[0] = a[n]; }"""))
    x = device(np.ones(4, np.float32))
    with pytest.raises(KernelError, match="large has 49156 bytes of __shared__ arrays; 49152 is the limit"):
        module.get_function("large")((1,), (1,), (x, x, 0))
    more = module.get_function("more")
    more.max_dynamic_shared_size_bytes = 227 * 1024
    more((1,), (1,), (x, x, 227 * 256 - 1), shared_mem=227 * 1024)
    more.max_dynamic_shared_size_bytes += 1
    with pytest.raises(KernelError, match="a block has at most 232448 bytes"):
        more((1,), (1,), (x, x, 0))


def test_threads_of_python_launch_at_the_same_time(sound):
    results = {}

    def work(k):
        y = memory.new(16, np.float32)
        for seed in range(20):
            sound[seed % 2].get_function("sum")((16,), (128,), (y, x[k], 64), order="random", seed=seed)
            results[k, seed] = y.tobytes()

    x = [device(X + k) for k in range(4)]
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert [len({results[k, seed] for seed in range(20)}) for k in range(4)] == [1] * 4


def test_fibers_switch_without_assembly_too(monkeypatch):
    monkeypatch.setattr(build, "COMMON", [*build.COMMON, "-DPORTABLE_FIBERS"])
    monkeypatch.setattr(build, "runtime", build.runtime.__wrapped__)
    (x, n), expected, error, options = CLEAN["sum"]
    for order in ("forward", "random"):
        y = memory.new(16, np.float32)
        Module(SOUND).get_function("sum")(args=(y, device(x), n), order=order, **options)
        assert (abs(y - expected) <= error).all()
    with pytest.raises(KernelError, match="is not reached by every thread"):
        Module(kernels("KERNEL(k) { if (threadIdx.x) __syncthreads(); }")).get_function("k")((1,), (32,), (y, y, 0))
