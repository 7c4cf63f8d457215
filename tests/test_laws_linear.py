"""Laws of the ops that are linear in what they carry: dropout, embedding, linear."""
import ctypes
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from pyllama import backend
from pyllama.ops import dropout, embedding, linear
from pyllama.rng import generator
from tests.fence import can_fence, fence_results, fenced
from tests.laws import close, law, same

# --- dropout ----------------------------------------------------------------------------------------------------------

rates = st.sampled_from([0.1, 0.25, 0.5, 0.9])
keys = st.tuples(st.integers(0, 2 ** 32 - 1), st.sampled_from(["residual", "attention"]), st.integers(1, 1000))


@law(dropout, rate=rates, key=keys)
def test_dropout_keeps_the_mean(rate, key):
    """An entry of y is 1/(1-rate) with probability 1 - rate: mean 1, variance rate/(1-rate).  The mean of n lies within
    6 standard deviations of 1 but for one key in 5e8.  No row or column of 400 is of one kind: 0.9^400 is 5e-19."""
    y, _ = dropout(np.ones((400, 400)), rate=rate, key=key)
    assert abs(y.mean() - 1) <= 6 * math.sqrt(rate / (1 - rate) / y.size)
    for axis in (0, 1):
        assert np.all(np.ptp(y, axis=axis) > 0)


@law(dropout, rate=rates, key=keys)
def test_dropout_scales_what_it_keeps_by_one_over_one_minus_rate(rng, dtype, N, D, rate, key):
    """Backward with the same mask."""
    x, dy = rng.standard_normal((2, N, D)).astype(dtype)
    y, back = dropout(x, rate=rate, key=key)
    kept = y != 0
    scale = np.where(kept, 1 / (1 - rate), 0).astype(dtype)
    same(y, x * scale)
    same(back(dy)[0], dy * scale)


@law(dropout, key=keys, cut=st.integers(0, 60))
def test_dropout_of_a_part_is_the_part_of_the_dropout(key, cut):
    """With start, where the part begins: any cut, on or off the eight numbers that the generator makes at once."""
    x = np.arange(1.0, 61)
    whole, _ = dropout(x, rate=0.5, key=key)
    parts = [dropout(part, rate=0.5, key=key, start=start)[0] for part, start in ((x[:cut], 0), (x[cut:], cut))]
    same(np.concatenate(parts), whole)


def test_dropout_draws_one_mask_whatever_the_precision_and_backend():
    masks = []
    for on in backend.available():
        with backend.use(on):
            masks += [dropout(np.ones((40, 30), dtype), rate=0.5, key=(1, "mask"))[0] != 0
                      for dtype in ("float32", "float64", "complex128")]
    for mask in masks[1:]:
        same(mask, masks[0])


@law(dropout, key=keys, other=keys)
def test_dropout_with_another_key_drops_others(key, other):
    """400 entries: two independent masks are the same once in 2^400."""
    a, b = (dropout(np.ones((20, 20)), rate=0.5, key=k)[0] for k in (key, other))
    assert (key == other) == np.array_equal(a, b)


@law(dropout, key=keys)
def test_dropout_at_rate_0_is_the_identity(rng, dtype, N, D, key):
    x, dy = rng.standard_normal((2, N, D)).astype(dtype)
    y, back = dropout(x, rate=0.0, key=key)
    same(y, x)
    same(back(dy)[0], dy)


@law(dropout, key=keys, start=st.integers(0, 2 ** 50), n=st.sampled_from([1, 7, 8, 9, 1000]), i=st.integers(0, 999),
     above=st.sampled_from([0, 2.0 ** -28, 2.0 ** -24]), number=st.sampled_from([float, np.float64, np.float32]))
def test_dropout_keeps_what_draws_the_rate_or_more(dtype, key, start, n, i, above, number):
    """Number i of the stream decides about number i.  The rate is one that was drawn, or a little above it; it is
    compared as NumPy compares a float32 with a number of this kind."""
    rng = generator(*key)
    rng.bit_generator.advance(start // 8)
    draws = rng.random(start % 8 + n, dtype=np.float32)[start % 8:]
    rate = number(float(draws[i % n]) + above)
    y, _ = dropout(np.ones(n, dtype), rate=rate, key=key, start=start)
    same(y != 0, draws >= rate)


@pytest.mark.parametrize("on", dropout.backends())
def test_dropout_at_rate_0_keeps_even_what_draws_a_0(on):
    """Draws lie in [0, 1).  A float32 is 0 once in 2^24; with this key the 1587th is."""
    key = (5630,)
    assert generator(*key).random(4096, dtype=np.float32)[1586] == 0
    with backend.use(on):
        assert dropout(np.ones(4096), rate=0.0, key=key)[0].all()


# --- embedding --------------------------------------------------------------------------------------------------------

@law(embedding)
def test_embedding_picks_rows_and_adds_gradients_up(rng, dtype, B, T, V, D):
    """Gradients of small integers, whose sums are exact: a token that occurs n times receives n of them."""
    ids, w = rng.integers(V, size=(B, T)), rng.standard_normal((V, D)).astype(dtype)
    dy = rng.integers(-9, 10, (B, T, D)).astype(dtype)
    y, back = embedding(ids, w)
    dw = np.zeros_like(w)
    for b, t in np.ndindex(B, T):
        same(y[b, t], w[ids[b, t]])
        dw[ids[b, t]] += dy[b, t]
    same(back(dy)[1], dw)


@law(embedding, kind=st.sampled_from(["int64", "int32", "uint16", "uint8"]))
def test_embedding_takes_ids_of_any_integer_type(rng, kind):
    ids, w = rng.integers(200, size=(2, 5)), rng.standard_normal((200, 3))
    y, back = embedding(ids, w)
    z, back_too = embedding(ids.astype(kind), w)
    same(z, y)
    same(back_too(y)[1], back(y)[1])


@pytest.mark.parametrize("wrong", [-1, 7, 2 ** 31])
@pytest.mark.parametrize("on", embedding.backends())
def test_embedding_refuses_ids_outside_the_vocabulary(on, wrong):
    """NumPy would take -1 for the last row."""
    ids = np.array([[0, 6], [wrong, 3]])
    with backend.use(on), pytest.raises(IndexError, match=rf"token id {wrong} is outside the vocabulary of 7 "):
        embedding(ids, np.ones((7, 2)))


# --- linear -----------------------------------------------------------------------------------------------------------

def terms(x, w):
    """Σ_d |x_d w_ed|, the size of a rounding in x wᵀ"""
    return np.abs(x) @ np.abs(w).T


@law(linear, leading=st.lists(st.integers(0, 3), max_size=3).map(tuple))
def test_linear_is_the_naive_sum(rng, leading, D, E):
    """For any leading axes, none included."""
    x, w, b = rng.standard_normal((*leading, D)), rng.standard_normal((E, D)), rng.standard_normal(E)
    plain, with_bias = sum(x[..., d, None] * w[:, d] for d in range(D)), linear(x, w, b)[0]
    close(linear(x, w)[0], plain, D + 1, terms(x, w))
    close(with_bias, plain + b, D + 2, terms(x, w) + np.abs(b))


@can_fence
@pytest.mark.parametrize("on", linear.backends())
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("N", "D", "E"), [(1, 769, 33), (4, 384, 5), (5, 385, 577), (49, 383, 100), (97, 769, 9),
                                           (385, 17, 33), (770, 8, 50), (54, 768, 16), (130, 130, 1030), (5, 9, 512)])
def test_linear_of_small_integers_is_exact(on, dtype, N, D, E):
    """All three products, of sizes about those of the kernels' tiles, panels and blocks, and at strides they avoid.

    Nothing beyond an array or scratch memory is touched: it would end here, by a segmentation fault.
    """
    rng = np.random.default_rng(N)
    x, w, dy = (rng.integers(-3, 4, shape) for shape in ((N, D), (E, D), (N, E)))
    with backend.use(on), pytest.MonkeyPatch.context() as patch:
        fence_results(patch)
        y, back = linear(fenced(x.astype(dtype)), fenced(w.astype(dtype)))
        dx, dw = back(fenced(dy.astype(dtype)))
    for got, want in ((y, x @ w.T), (dx, dy @ w), (dw, dy.T @ x)):
        same(got, want.astype(dtype))


@law(linear)
def test_linear_with_the_identity_is_the_identity(rng, dtype, N, D):
    """Exactly: every other term is 0.  Without an input only the bias is left."""
    x, b = rng.standard_normal((N, D)).astype(dtype), rng.standard_normal(D).astype(dtype)
    same(linear(x, np.eye(D, dtype=dtype))[0], x)
    same(linear(0 * x, np.eye(D, dtype=dtype), b)[0], np.broadcast_to(b, x.shape))


@law(linear)
def test_linear_maps_compose_as_matrices_do(rng, N, D, E, F):
    x, w, u = rng.standard_normal((N, D)), rng.standard_normal((E, D)), rng.standard_normal((F, E))
    twice, _ = linear(linear(x, w)[0], u)
    close(twice, linear(x, u @ w)[0], 2 * (D + E), np.abs(x) @ np.abs(w).T @ np.abs(u).T)


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
def test_a_product_is_added_to_what_can_be_added_to_and_to_nothing_else():
    x, w, dy = np.ones((4, 3)), np.ones((5, 3)), np.ones((4, 5))
    for into in (np.full((5, 3), 7.0), np.full((3, 5), 7.0).T):
        assert backend.cpu.linear_backward_into(dy, x, w, None, into={1: into})[1] is into
        assert np.array_equal(into, np.full((5, 3), 11.0))
    frozen = np.zeros((5, 3))
    frozen.flags.writeable = False
    for left in (frozen, np.zeros((5, 6))[:, ::2]):
        dw = backend.cpu.linear_backward_into(dy, x, w, None, into={1: left})[1]
        assert np.array_equal(dw, np.full((5, 3), 4.0))
        assert not left.any()
    for wrong in (np.zeros((5, 4)), np.zeros(15)):
        with pytest.raises(ValueError, match=r"in place|shapes"):
            backend.cpu.linear_backward_into(dy, x, w, None, into={1: wrong})
        assert not wrong.any()
    with pytest.raises(TypeError, match="mixed precision"):
        backend.cpu.linear_backward_into(dy, x, w, None, into={1: np.zeros((5, 3), "float16")})
    with pytest.raises(ValueError, match="matrices"):
        backend.cpu.matmul(np.ones(3), w, w)


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("M", "N", "K"), [(50, 700, 390), (2300, 50, 9), (20, 2000, 800)])
def test_no_bit_of_a_product_depends_on_the_cache(dtype, M, N, K):
    """It decides how many columns of B are packed at a time: here one panel, two, and as many as fit this processor."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((M, K)).astype(dtype), rng.standard_normal((K, N)).astype(dtype)
    size = ctypes.c_ssize_t.in_dll(ctypes.CDLL(backend.cpu.__file__), "second_cache")
    found, products = size.value, []
    for size.value in (0, 57344, found):
        products.append(backend.cpu.matmul(a, b, a))
    np.testing.assert_allclose(products[0], a.astype("float64") @ b, rtol=0, atol=1e3 * np.finfo(dtype).eps * K ** 0.5)
    same(products[0], products[2])
    same(products[1], products[2])


SCIPY = importlib.util.find_spec("scipy")
BLAS = sorted(Path(SCIPY.origin).parents[1].glob("scipy.libs/libscipy_openblas-*")) if SCIPY else []


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
@pytest.mark.skipif(not BLAS, reason="needs the BLAS of SciPy's wheel: pip install scipy")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("N", "D", "E"), [(70, 50, 30), (6, 1, 5), (1, 40, 9), (9, 40, 1), (0, 3, 4)])
def test_a_blas_may_make_the_products(dtype, N, D, E):
    """Of small integers, so exactly; of whole rows and of parts of rows."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.integers(-3, 4, shape).astype(dtype) for shape in ((N, 2 * D), (E, D), (N, E)))
    x, into = x[:, :D], np.ones((E, D), dtype)
    backend.cpu.use_blas(str(BLAS[0]))
    try:
        y = backend.cpu.matmul(x, w.T, w)
        dx, dw = backend.cpu.linear_backward_into(dy, x, w, None, into={1: into})[:2]
    finally:
        backend.cpu.use_blas("")
    for got, want in ((y, x @ w.T), (dx, dy @ w), (dw, 1 + dy.T @ x)):
        same(got, want)
