"""Products of bfloat16 by every table of kernels that runs here: values, layouts, and what no bit depends on."""
import ctypes
import functools
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from pyllama import backend
from tests.fence import can_fence, fenced

cpu = backend.cpu
pytestmark = pytest.mark.skipif(cpu is None, reason=backend.why_no_cpu)

BFLOAT16 = ml_dtypes.bfloat16
EXACT = 2.0**-24                # the most that rounding to float32 changes a number, relatively; half its epsilon
HALF = 2.0**-8                  # ... to bfloat16, one rounding
LEAST = 2.0**-126               # the smallest normal number of both
ISAS = ["baseline", "avx2", "avx512", "avx512bf16", "amx"]                  # those that have a table for bfloat16
RUNNING = ISAS[:ISAS.index({"avx512vnni": "avx512"}.get(cpu.isa, cpu.isa)) + 1] if cpu else []
LAYOUTS = ["rows", "columns"]
SIZES = [(1, 1, 1), (1, 70, 33), (3, 5, 64), (4, 96, 321), (5, 33, 2), (9, 48, 7), (33, 31, 31), (32, 64, 32),
         (61, 130, 385), (64, 32, 640), (130, 65, 1100)]                                   # M, N, K


@functools.cache
def tables():
    """{instruction set: (product_work, product)} of the compiled module."""
    header = (Path(__file__).parents[1] / "csrc/kernels.h").read_text()
    fields = re.findall(r"^    (?:idx (\w+);|\w+ \(\*(\w+)\))", header[header.index("of every precision"):], re.M)
    names = [number or function for number, function in fields]
    idx, pointer, number = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_int
    product = ctypes.CFUNCTYPE(None, pointer, idx, number, pointer, pointer, idx, idx, pointer, idx, idx, idx, idx, idx,
                               number, pointer, number)
    library, found = ctypes.CDLL(cpu.__file__), {}
    for isa in RUNNING:
        if hasattr(library, f"kernels_16_{isa}"):                          # a compiler may have left one out
            table = (ctypes.c_size_t * len(names)).in_dll(library, f"kernels_16_{isa}")
            found[isa] = table[names.index("product_work")], product(table[names.index("product")])
    return found


each_isa = pytest.mark.parametrize("isa", RUNNING)
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def address(x):
    return None if x is None else x.ctypes.data


def aligned(count):
    """Floats from a cache line on, fenced where that is possible: they fill whole lines."""
    room = np.zeros(count + 16, np.float32)
    room = room[-address(room) % 64 // 4:][:count]
    return room if sys.platform == "win32" else fenced(room)


def multiplied(isa, a, b, *, into=None, narrow=False, bias=None, threads=1):
    """a b by a table, rounded to bfloat16 if narrow, or added to a copy of `into`."""
    if isa not in tables():
        pytest.skip(f"this build has no table for {isa}")
    work_size, product = tables()[isa]
    M, K, N = *a.shape, b.shape[1]
    c = np.empty((M, N), BFLOAT16 if narrow else np.float32) if into is None else into.copy()
    work = aligned(threads * work_size)
    product(address(c), N, narrow, address(bias), address(a), *(s // 2 for s in a.strides), address(b),
            *(s // 2 for s in b.strides), M, N, K, into is not None, address(work), threads)
    return c


def laid_out(x, layout, margin=0):
    """x with contiguous rows or columns, which lie `margin` numbers apart."""
    x = x if layout == "rows" else x.T
    room = np.zeros((x.shape[0], x.shape[1] + margin), x.dtype)
    view = room[:, :x.shape[1]]
    view[...] = x
    return view if layout == "rows" else view.T


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(BFLOAT16)


def factors(size, seed=0):
    M, N, K = size
    return normal(M, K, seed=seed), normal(K, N, seed=seed + 1)


def wide(x):
    return x.astype(np.float64)


def bound(a, b, begun=0.0):
    """What a float32 sum of exact products may be wrong by, in any order, from a sum `begun` on.

    The product of two bfloat16 has 16 bits: it is exact unless it is below 2^-126.  n terms take n roundings at most
    (AMX: n, and one more to join its two sums), each by EXACT of a partial sum, which Σ |a b| bounds: Higham's
    γ_n = n u / (1 - n u), for n u < 0.01 less than 1.01 n u.  A subnormal number counts as 0 in the instructions, as a
    factor, a product or a sum: a factor changes the sum by LEAST times the other one, each of the rest by LEAST.
    """
    a, b, terms = np.abs(wide(a)), np.abs(wide(b)), a.shape[1] + 2
    flushed = LEAST * (a.sum(axis=1, keepdims=True) + b.sum(axis=0) + 3 * terms)
    return 1.01 * terms * EXACT * (a @ b + np.abs(begun)) + flushed


def assert_product(c, a, b, begun=0.0):
    exact = wide(a) @ wide(b) + begun
    allowed = bound(a, b, begun)
    if c.dtype == BFLOAT16:                             # rounded once, from a sum that is wrong by `allowed`
        allowed = allowed + HALF * (np.abs(exact) + allowed) + LEAST
    assert np.all(np.abs(wide(c) - exact) <= allowed)


# --- values -----------------------------------------------------------------------------------------------------------

@each_isa
@each_size
@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
def test_a_product_is_within_its_bound(isa, size, of_a, of_b):
    a, b = factors(size)
    begun, bias = normal(*size[:2], seed=2).astype(np.float32), normal(size[1], seed=3).astype(np.float32) / 3
    for margin in (0, 3, 64):
        x, y = laid_out(a, of_a, margin), laid_out(b, of_b, margin)
        c = multiplied(isa, x, y)
        assert_product(c, a, b)
        assert_product(multiplied(isa, x, y, into=begun), a, b, begun)
        assert_product(multiplied(isa, x, y, narrow=True, bias=bias), a, b, bias)
        np.testing.assert_array_equal(multiplied(isa, x, y, narrow=True), c.astype(BFLOAT16))


@each_isa
@pytest.mark.parametrize("N", [1009, 1024, 1056, 2048])
@pytest.mark.parametrize("K", [200, 600])
def test_a_product_of_many_columns_is_within_its_bound(isa, N, K):
    """Several blocks of columns, which tiles may not divide; for K = 600, several chunks along K."""
    a, b = factors((33, N, K))
    for of_a, of_b in (("rows", "columns"), ("rows", "rows"), ("columns", "rows")):
        x, y = laid_out(a, of_a), laid_out(b, of_b)
        c = multiplied(isa, x, y)
        assert_product(c, a, b)
        np.testing.assert_array_equal(multiplied(isa, x, y, narrow=True), c.astype(BFLOAT16))


@each_isa
@pytest.mark.parametrize("narrow", [False, True])
def test_an_empty_sum_is_zero(isa, narrow):
    a, b, bias = np.empty((40, 0), BFLOAT16), np.empty((0, 50), BFLOAT16), np.arange(50, dtype=np.float32)
    assert not multiplied(isa, a, b, narrow=narrow).astype(np.float32).any()
    begun = normal(40, 50).astype(np.float32)
    np.testing.assert_array_equal(multiplied(isa, a, b, into=begun), begun)
    rounded = np.broadcast_to(bias.astype(BFLOAT16), (40, 50))
    np.testing.assert_array_equal(multiplied(isa, a, b, narrow=True, bias=bias), rounded)


@each_isa
def test_a_sum_too_long_for_one_block_is_rounded_once(isa):
    """2^16 equal terms of 1 / 256, a few columns: a sum rounded in between would stop growing at 1."""
    K = 1 << 16
    a, b = np.full((40, K), 1 / 16, BFLOAT16), np.full((K, 3), 1 / 16, BFLOAT16)
    a[:, ::2] = 1 / 8
    np.testing.assert_array_equal(multiplied(isa, a, b, narrow=True).astype(np.float32), K * 1.5 / 256)


@each_isa
def test_sums_that_cancel_are_within_their_bound(isa):
    """Large terms of both signs, in an order that keeps the partial sums large."""
    a, b = factors((37, 40, 512))
    a[:, 256:], b[256:] = a[:, :256] * 256, -b[:256] / 256
    assert_product(multiplied(isa, a, b), a, b)
    assert np.abs(wide(a) @ wide(b)).max() == 0


@each_isa
def test_subnormal_numbers_are_within_their_bound(isa):
    a, b = factors((20, 33, 70))
    for small, other in ((2.0**-130, 1), (2.0**-64, 2.0**-64), (2.0**-70, 2.0**-60)):
        x, y = (a.astype(np.float32) * np.float32(small)).astype(BFLOAT16), (b * BFLOAT16(other))
        assert_product(multiplied(isa, x, y), x, y)


@each_isa
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("size", [(3, 40, 70), (37, 40, 33), (40, 37, 500)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_reaches_its_row_and_column_alone(isa, odd, size, layout):
    """Nothing that pads a tile makes a NaN: 0 times infinity would."""
    a, b = factors(size)
    for i, k in ((0, 0), (size[0] - 1, size[2] - 1)):
        bad = a.copy()
        bad[i, k] = odd
        c = multiplied(isa, laid_out(bad, layout), laid_out(b, layout))
        assert not np.isfinite(c[i]).any()
        rest = np.delete(np.arange(size[0]), i)
        assert_product(c[rest], a[rest], b)
    bad = b.copy()
    bad[-1, -1] = odd
    c = multiplied(isa, laid_out(a, layout), laid_out(bad, layout))
    assert not np.isfinite(c[:, -1]).any()
    assert_product(c[:, :-1], a, b[:, :-1])


# --- what the bits may not depend on ----------------------------------------------------------------------------------

@each_isa
@each_size
def test_no_bit_depends_on_the_threads(isa, size):
    a, b = factors(size)
    for of_a, of_b in (("rows", "columns"), ("rows", "rows"), ("columns", "rows")):
        x, y = laid_out(a, of_a), laid_out(b, of_b)
        for narrow in (False, True):
            one = multiplied(isa, x, y, narrow=narrow)
            for threads in (2, 3, 7):
                np.testing.assert_array_equal(multiplied(isa, x, y, narrow=narrow, threads=threads), one)


@each_size
def test_pairs_that_are_widened_have_the_bits_of_the_instruction_for_pairs(size):
    """vdpbf16ps rounds twice, after the second product of a pair and after the first, and so does widened16.h."""
    if size[0] <= 4:
        pytest.skip("few rows are multiplied by dots.h, whose vectors have other widths")
    if "avx512bf16" not in tables():
        pytest.skip("this processor or build has no vdpbf16ps")
    a, b = factors(size)
    for of_a, of_b in (("rows", "columns"), ("rows", "rows"), ("columns", "rows")):
        x, y = laid_out(a, of_a), laid_out(b, of_b)
        pairs = multiplied("avx512bf16", x, y)
        for isa in tables().keys() & {"avx2", "avx512"}:
            np.testing.assert_array_equal(multiplied(isa, x, y), pairs)


# --- memory -----------------------------------------------------------------------------------------------------------

@can_fence
@each_isa
@pytest.mark.parametrize("behind", [True, False])
def test_nothing_beyond_the_arrays_is_touched(isa, behind):
    for M, N, K in ((1, 1, 1), (3, 37, 45), (35, 37, 45), (64, 70, 96)):
        a, b = factors((M, N, K))
        bias = fenced(np.zeros(N, np.float32), behind)
        for of_a in LAYOUTS:
            for of_b in LAYOUTS:
                x = fenced(np.ascontiguousarray(a if of_a == "rows" else a.T), behind)
                y = fenced(np.ascontiguousarray(b if of_b == "rows" else b.T), behind)
                x, y = x if of_a == "rows" else x.T, y if of_b == "rows" else y.T
                assert_product(multiplied(isa, x, y, into=fenced(np.zeros((M, N), np.float32), behind)), a, b)
                assert_product(multiplied(isa, x, y, narrow=True, bias=bias), a, b)
