"""The compiled module: every instruction set, any thread count, any array."""
import os

import numpy as np
import pytest

from pyllama import backend, ops
from tests.another import python

cpu = backend.cpu
built = pytest.mark.skipif(cpu is None, reason=backend.why_no_cpu)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def calls(x, w, u, dy):
    """A call of every kernel's op, made of these four arrays: the op, its inputs, options, dy."""
    yield ops.add_rms_norm, (x, u, w), {"eps": 1e-5}, (u, dy)
    yield ops.gelu, (x,), {"tanh": False}, dy
    yield ops.gelu, (x,), {"tanh": True}, dy
    yield ops.layer_norm, (x, w, -w), {"eps": 1e-5}, dy
    yield ops.relu, (x,), {}, dy
    yield ops.rms_norm, (x, w), {"eps": 1e-5}, dy
    yield ops.swiglu, (x, u), {}, dy


def run_all(*arrays, kernels=cpu):
    """Every array that the kernels, or for None the references, make of these four."""
    made = []
    for op, inputs, options, dy in calls(*arrays):
        forward, backward = getattr(kernels, op.name, op.forward), getattr(kernels, op.name + "_backward", op.backward)
        y, saved = forward(*inputs, **options)
        made += [*op.each(y), *saved, *backward(dy, *saved, **options)]
    return made


def inputs(shape, dtype):
    return normal(shape, dtype, 1), normal(shape[-1:], dtype, 2), normal(shape, dtype, 3), normal(shape, dtype, 4)


# --- values -----------------------------------------------------------------------------------------------------------

@built
@each_dtype
@pytest.mark.parametrize("D", [1, 15, 16, 17, 64, 65, 130, 1030, 2100])
@pytest.mark.parametrize("rows", [(), (0,), (1,), (2, 3)])
def test_kernels_agree_with_the_references_in_float64(dtype, D, rows):
    arrays = inputs((*rows, D), dtype)
    wanted = run_all(*(a.astype("float64") for a in arrays), kernels=None)
    # A sum of n terms, each a product of a few, is wrong by at most (n + a few) ε times the sum of their magnitudes.
    # Of the terms here, standard normal numbers multiplied by fours, none exceeds 100.
    bound = (D + 6 + 10) * 100 * np.finfo(dtype).eps
    for result, exact in zip(run_all(*arrays), wanted, strict=True):
        assert result.dtype == dtype
        assert result.shape == exact.shape
        assert np.all(np.abs(result - exact) <= bound)


@built
@each_dtype
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0)])
def test_kernels_take_arrays_without_columns(dtype, shape):
    assert {a.shape for a in run_all(*inputs(shape, dtype))} == {shape, (*shape[:-1], 1), (0,)}


def limits_of(dtype):
    """np.finfo of a float that long double is wide enough to judge; skips the test where there is none."""
    info = np.finfo(dtype)
    if np.finfo(np.longdouble).eps > info.eps / 100:
        pytest.skip("this machine has no wider float to compare with")
    return info


@built
@each_dtype
def test_exp_is_within_its_bound_everywhere(dtype):
    info = limits_of(dtype)
    every_exponent = np.ldexp(1 + normal(2000, dtype) % 1, np.arange(info.minexp, 11)[:, None]).ravel()
    low, high = np.log(info.smallest_subnormal) - 2, np.log(info.max) + 2
    x = np.concatenate([every_exponent, -every_exponent, np.linspace(low, high, 500_000)]).astype(dtype)
    x = x[np.abs(x) < 1e4]
    with np.errstate(over="ignore", under="ignore"):
        y, exact = cpu._exp(x), np.exp(x.astype(np.longdouble))
        rounded = exact.astype(dtype)
    assert np.array_equal(np.isinf(y), np.isinf(rounded))
    finite = np.isfinite(y)
    # The last sum, 1 + t with |t| < 0.29 under 1, rounds by 1/2 ulp; t and what it is made of by 1/4 each, and their
    # higher terms by less than 1/10.
    error = np.abs(y[finite] - exact[finite]) / np.spacing(rounded[finite])
    assert error.max() <= 1.1


@built
@each_dtype
def test_exp_of_what_is_not_a_number_and_not_finite(dtype):
    y = cpu._exp(np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0], dtype))
    np.testing.assert_array_equal(y, np.array([np.nan, np.inf, 0, np.inf, 0, 1, 1], dtype))


def normal_distribution(x):
    """Φ(x) and e^(-x²/2) in long double: Laplace's continued fraction beyond 2, the series of x^n / n!! within."""
    z = np.abs(x)
    high = z.astype(np.float32).astype(z.dtype)                                         # its square is exact
    gauss = np.exp(-high * high / 2) * np.exp((high - z) * (high + z) / 2)
    far, term = np.maximum(z, 2), np.minimum(z, 2)
    fraction, series = far, np.zeros_like(z)
    for n in range(200, 0, -1):
        fraction = far + n / fraction
    for n in range(3, 99, 2):
        series, term = series + term, term * z * z / n
    root = np.sqrt(2 * np.longdouble("3.14159265358979323846"))
    tail = np.where(z < 2, 0.5 - gauss * series / root, gauss / (root * fraction))
    return np.where(x < 0, tail, 1 - tail), gauss


@built
@each_dtype
def test_gelu_is_within_its_bound_in_its_lower_tail_too(dtype):
    """Relative to itself, down to where the numbers are no longer normal."""
    info = limits_of(dtype)
    x = np.concatenate([np.linspace(-40, 10, 40_000), normal(40_000, dtype)]).astype(dtype)
    wide = x.astype(np.longdouble)
    phi, gauss = normal_distribution(wide)
    root = np.sqrt(2 / np.longdouble("3.14159265358979323846"))
    twice_u, twice_du = 2 * root * wide * (1 + 0.044715 * wide**2), 2 * root * (1 + 3 * 0.044715 * wide**2)
    s = 1 / (1 + np.exp(-twice_u))
    # Φ: the exponential errs by 1.1 ε, the two polynomials, whose terms are all positive, by 4, the other operations by
    # 2.  σ(2u): what 2u is wrong by, 3 ε of it, is a relative error of the exponential; the rest as for Φ.
    for tanh, value, rise, roundings in ((False, phi, gauss * root / 2, 7),
                                         (True, s, s * (1 - s) * twice_du, 7 + 3 * np.abs(twice_u))):
        y, saved = cpu.gelu(x, tanh=tanh)
        dx, = cpu.gelu_backward(np.ones_like(x), *saved, tanh=tanh)
        for got, exact, size in ((y, wide * value, np.abs(wide * value)),
                                 (dx, value + wide * rise, value + np.abs(wide * rise))):
            assert np.max((np.abs(got - exact) / (roundings * info.eps * size))[value > info.tiny]) <= 1


@built
@each_dtype
def test_swiglu_far_out_neither_overflows_nor_loses_its_gradient(dtype):
    g = np.array([1e4, -1e4, 80, -80], dtype)
    one = np.ones_like(g)
    y, saved = cpu.swiglu(g, one)
    dg, du = cpu.swiglu_backward(one, *saved)
    wide = g.astype(np.float64)
    tail = np.exp(-np.abs(wide))
    np.testing.assert_allclose(y, np.where(g > 0, wide, wide * tail), rtol=8 * np.finfo(dtype).eps, atol=0)
    np.testing.assert_array_equal(du, y)
    np.testing.assert_allclose(dg, np.where(g > 0, 1, tail * (1 + wide)), rtol=8 * np.finfo(dtype).eps, atol=0)


@built
@each_dtype
def test_embedding_adds_its_gradient_to_an_array_that_it_is_given(dtype):
    """If that is dense and may be written to.  One of another shape or precision is refused."""
    ids, (w, into), dy = np.array([[1, 4, 1]]), normal((2, 5, 3), dtype), normal((1, 3, 3), dtype, 1)
    expected = into.copy()
    for n in range(3):
        expected[ids[0, n]] += dy[0, n]
    _, dw = cpu.embedding_backward_into(dy, ids, w, into={1: into})
    assert dw is into
    assert np.array_equal(into, expected)
    frozen = into.copy()
    frozen.flags.writeable = False
    for left in (np.asfortranarray(into), frozen):
        _, dw = cpu.embedding_backward_into(dy, ids, w, into={1: left})
        assert np.array_equal(dw, cpu.embedding_backward(dy, ids, w)[1])
        assert np.array_equal(left, expected)
    with pytest.raises(ValueError, match="shapes"):
        cpu.embedding_backward_into(dy, ids, w, into={1: into[:4]})
    with pytest.raises(TypeError, match="mixed precision"):
        cpu.embedding_backward_into(dy, ids, w, into={1: into.astype("float16")})
    assert np.array_equal(into, expected)


@built
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 1), (False, 74), (True, 50)])
@pytest.mark.parametrize(("T", "S", "K", "G", "R"), [
    (71, 73, 5, 2, 2), (145, 290, 50, 1, 2), (290, 145, 3, 2, 1), (290, 290, 3, 1, 2), (1, 20800, 3, 2, 1)])
@pytest.mark.parametrize("steep", [1, 2e3])
def test_attention_agrees_across_the_edges_of_its_blocks(T, S, K, G, R, causal, window, masked, steep):
    """Of 72 queries by 96 or 144 keys, or one query by 10,368 at most.  Padding hides a whole block, the first.

    Steep scores let a block count for nothing beside the next; their roundings, as large, are relative errors of p.
    """
    q, dy = normal((2, 2, G, R, T, K), "float64")
    k, v = normal((2, 2, G, S, K), "float64", 1)
    q *= steep
    mask = np.random.default_rng(2).random((2, S)) < 0.5
    mask[0, :S // 2], mask[1, -3:] = False, True
    options = dict(causal=causal, window=window)
    results = []
    for on in ("cpu", "numpy"):
        with backend.use(on):
            y, back = ops.attention(q, k, v, *([mask] if masked else []), **options)
            results.append([y, *back(dy)[:3]])
    for got, exact in zip(*results, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-10 * steep * max(1, np.abs(exact).max()))


# --- what the results may not depend on -------------------------------------------------------------------------------

@built
@each_dtype
@pytest.mark.parametrize("shape", [(70, 1000), (1, 70001), (70001, 1)])
def test_results_do_not_depend_on_the_thread_count(dtype, shape):
    arrays = inputs(shape, dtype)
    before = cpu.threads()
    runs = []
    for n in (1, 2, 3, 7):
        cpu.set_threads(n)
        runs.append(run_all(*arrays))
    cpu.set_threads(before)
    for run in runs[1:]:
        assert all(map(np.array_equal, run, runs[0]))


@built
@each_dtype
@pytest.mark.parametrize("D", [5, 33, 130])
def test_results_do_not_depend_on_where_the_arrays_lie(dtype, D):
    """A compiler may peel a loop up to an aligned address, which would change the order of a sum from run to run."""
    arrays = inputs((3, D), dtype)

    def at(a, offset):
        room = np.empty(a.size + 32, dtype)
        place = room[offset:offset + a.size].reshape(a.shape)
        place[...] = a
        return place

    first = run_all(*arrays)
    for offset in range(16):
        moved = [at(a, (offset * (i + 1)) % 16) for i, a in enumerate(arrays)]
        assert all(map(np.array_equal, run_all(*moved), first))


def strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def backwards(a):
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def swapped(a):
    return a.astype(a.dtype.newbyteorder())


def misaligned(a):
    room = np.empty(a.nbytes + 1, np.uint8)
    place = room[1:].view(a.dtype).reshape(a.shape)
    place[...] = a
    return place


@built
@each_dtype
@pytest.mark.parametrize("odd", [strided, backwards, np.asfortranarray, swapped, misaligned], ids=lambda f: f.__name__)
def test_any_array_gives_what_a_dense_one_gives_and_is_left_alone(dtype, odd):
    arrays = inputs((4, 33), dtype)
    unusual = [odd(a) for a in arrays]
    for a in unusual:
        a.flags.writeable = False
    for result, wanted in zip(run_all(*unusual), run_all(*arrays), strict=True):
        assert np.array_equal(result, wanted)
        assert result.flags.c_contiguous
        assert result.flags.owndata
        assert result.dtype.isnative
    assert all(map(np.array_equal, unusual, arrays))


# --- instruction sets, threads, forks ---------------------------------------------------------------------------------

OF_KERNELS = {                                  # file: its tests that run the C kernels in this process
    "test_build.py": "kernels or exp or swiglu or edges or results",
    "test_ops.py": "cpu and not slopes",        # both passes are the reference's there, whose backward pass is exact
    "test_threads.py": "bits",
    "test_stored.py": "test",
    "test_decode_prompts.py": "small_cache",
    "test_cast.py": "cpu",
}
FROM_AVX512_ON = {                              # products alone differ: with quants, and in bfloat16
    "avx512": {"test_stored.py": "test", "test_ops.py": "bfloat16"},
    "avx512vnni": {"test_stored.py": "test"},
    "avx512bf16": {"test_ops.py": "bfloat16"},
}


@built
@pytest.mark.parametrize("isa", ["baseline", "avx2", *FROM_AVX512_ON])
def test_lower_instruction_sets_pass_the_tests_of_kernels_too(isa):
    if os.environ.get("PYLLAMA_ISA"):
        pytest.skip("an instruction set is chosen already")
    asked = python("-c", "from pyllama import cpu; print(cpu.isa)", PYLLAMA_ISA=isa)
    if f"PYLLAMA_ISA={isa}" in asked.stderr:
        pytest.skip(f"this build or processor has no {isa}")
    assert asked.stdout.strip() == isa
    those_of = FROM_AVX512_ON.get(isa, OF_KERNELS)
    which = " or ".join(f"({file} and {those})" for file, those in those_of.items())
    files = [f"tests/{file}" for file in those_of]
    run = python("-m", "pytest", "-p", "no:cacheprovider", "-rp", "-k", which, *files, timeout=900,
                 PYLLAMA_ISA=isa, HYPOTHESIS_PROFILE="few")
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(f"PASSED {file}" in run.stdout for file in files)


@built
def test_the_thread_count_can_be_asked_for():
    said = python("-c", "from pyllama import cpu; print(cpu.threads())", PYLLAMA_NUM_THREADS="5").stdout
    assert said == "5\n"
    for n in (0, -1, 1025):
        with pytest.raises(ValueError, match="from 1 to 1024"):
            cpu.set_threads(n)


FORK = """
import os
import numpy as np
from pyllama import cpu
cpu.set_threads(2)
x = np.ones((300, 300))
y = cpu.swiglu(x, x)[0]                         # starts OpenMP's threads, which the child will not have
if os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
assert cpu.threads() == 1
assert np.array_equal(cpu.swiglu(x, x)[0], y)
try:
    cpu.set_threads(2)
except RuntimeError:
    os._exit(42)
"""


@built
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_runs_on_one_thread_and_does_not_hang():
    assert python("-c", FORK).returncode == 42
