"""Laws of cross-entropy, and of the projection that shares its pass."""
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from pyllama import backend
from pyllama.ops import cross_entropy, linear, linear_cross_entropy, softmax
from tests.gpu import moved
from tests.laws import close, law, same

BACKENDS = linear_cross_entropy.backends()
IGNORED = -100
smoothings, z_losses = st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 1e-4, 0.1])
every_setting = st.fixed_dictionaries({"ignore_index": st.sampled_from([IGNORED, 0]), "label_smoothing": smoothings,
                                       "z_loss": z_losses, "count": st.sampled_from([None, 1, 7])})


def drawn(rng, N, V, ignore_index=IGNORED, dtype="float64"):
    """Logits and targets, a quarter of them ignored."""
    z, t = rng.standard_normal((N, V)).astype(dtype), rng.integers(V, size=N)
    return z, np.where(rng.random(N) < 0.25, ignore_index, t)


# --- cross_entropy ----------------------------------------------------------------------------------------------------
# Logits below 8: a row's loss is made of numbers below 8 + log V, with about V roundings in the sums over v; the mean
# has N more.  z-loss adds the square.

def loss_size(V, z_loss=0.0):
    return (8 + math.log(V)) + z_loss * (8 + math.log(V)) ** 2


@law(cross_entropy, settings=every_setting)
def test_cross_entropy_is_the_naive_formula(rng, N, V, settings):
    """-Σ q log p + ζ lse², in Python's math; at least 0 without the z-loss."""
    smoothing, z_loss = settings["label_smoothing"], settings["z_loss"]
    z, t = drawn(rng, N, V, settings["ignore_index"])
    total, rows = 0.0, 0
    for row, target in zip(z.tolist(), t.tolist(), strict=True):
        if target != settings["ignore_index"]:
            lse = math.log(math.fsum(map(math.exp, row)))
            q = [(1 - smoothing) * (v == target) + smoothing / V for v in range(V)]
            total += z_loss * lse ** 2 - math.fsum(weight * (a - lse) for weight, a in zip(q, row, strict=True))
            rows += 1
    loss, _ = cross_entropy(z, t, **settings)
    tolerance = 2 * (N + V + 16)
    close(loss, total / (settings["count"] or max(rows, 1)), tolerance, N * loss_size(V, z_loss))
    if not z_loss:
        assert loss >= -tolerance * np.finfo(float).eps * N * loss_size(V)


@law(cross_entropy, label_smoothing=smoothings, offset=st.floats(-100, 100))
def test_cross_entropy_is_shift_invariant(rng, N, V, label_smoothing, offset):
    """A constant added to a row's logits changes nothing; so the gradient along it is zero: rows of dz sum to 0."""
    z, t = drawn(rng, N, V)
    shift = offset * rng.standard_normal((N, 1))
    (loss, back), (moved, back_moved) = (cross_entropy(x, t, label_smoothing=label_smoothing) for x in (z, z + shift))
    size = loss_size(V) + np.abs(shift).max()
    close(moved, loss, 2 * (N + V + 16), N * size)
    dz, dz_moved = back(1.0)[0], back_moved(1.0)[0]
    close(dz_moved, dz, 2 * (V + 16), size)
    close(dz.sum(axis=-1), np.zeros(N), 2 * (V + 16), size)


@law(cross_entropy, label_smoothing=smoothings)
def test_cross_entropy_of_no_information_is_log_V(rng, N, V, label_smoothing):
    loss, _ = cross_entropy(np.zeros((N, V)), rng.integers(V, size=N), label_smoothing=label_smoothing)
    close(loss, math.log(V), N + V + 16, 1 + math.log(V))


@law(cross_entropy, settings=every_setting)
def test_cross_entropy_of_ignored_rows_is_nothing(rng, dtype, N, V, settings):
    """Their logits may be anything: not a bit of the loss changes, and their gradient is exactly zero."""
    z, t = drawn(rng, N, V, settings["ignore_index"], dtype)
    ignored = t == settings["ignore_index"]
    loss, back = cross_entropy(z, t, **settings)
    dz, _ = back(loss)
    z[ignored] = 1e3 * rng.standard_normal((ignored.sum(), V))
    other, back_other = cross_entropy(z, t, **settings)
    same(other, loss)
    same(back_other(loss)[0], dz)
    assert not dz[ignored].any()


@law(cross_entropy, settings=every_setting)
def test_cross_entropy_of_ignored_rows_alone_is_zero(rng, dtype, N, V, settings):
    """Not 0/0; neither is that of no rows at all."""
    for n in (N, 0):
        z, t = rng.standard_normal((n, V)).astype(dtype), np.full(n, settings["ignore_index"])
        loss, back = cross_entropy(z, t, **settings)
        assert loss == 0
        assert not back(loss)[0].any()


@law(cross_entropy, label_smoothing=smoothings, z_loss=z_losses, at=st.integers(0, 5))
def test_cross_entropy_of_parts_with_the_common_count_adds_up(rng, N, V, label_smoothing, z_loss, at):
    """Micro-batches: the losses sum to that of the whole batch, the gradients lie side by side."""
    z, t = drawn(rng, N, V)
    settings = dict(label_smoothing=label_smoothing, z_loss=z_loss)
    whole, back = cross_entropy(z, t, **settings)
    common = int(np.sum(t != IGNORED))
    parts = [cross_entropy(z[rows], t[rows], count=common, **settings) for rows in (slice(0, at), slice(at, None))]
    close(sum(loss for loss, _ in parts), whole, 2 * (N + V + 16), N * loss_size(V, z_loss))
    dz = np.concatenate([back_part(1.0)[0] for _, back_part in parts])
    close(dz, back(1.0)[0], 2 * (V + 16), loss_size(V, z_loss))


@law(cross_entropy, label_smoothing=smoothings, z_loss=z_losses)
def test_cross_entropy_of_extreme_logits_is_finite(rng, dtype, N, V, label_smoothing, z_loss):
    """Logits of ±1e4, whose exponentials overflow."""
    z, t = 1e4 * rng.choice([-1, 1], (N, V)).astype(dtype), rng.integers(V, size=N)
    loss, back = cross_entropy(z, t, label_smoothing=label_smoothing, z_loss=z_loss)
    assert np.isfinite(loss)
    assert np.isfinite(back(loss)[0]).all()


@law(cross_entropy, z_loss=z_losses)
def test_cross_entropy_allows_impossible_tokens(rng, dtype, N, V, z_loss):
    """Logits of -∞ beside the target: the loss is that of the other tokens, and they get no gradient."""
    z, t = rng.standard_normal((N, V)).astype(dtype), np.zeros(N, int)
    impossible = rng.random(V) < 0.4
    impossible[0] = False
    z[:, impossible] = -np.inf
    loss, back = cross_entropy(z, t, z_loss=z_loss)
    rest, _ = cross_entropy(z[:, ~impossible], t, z_loss=z_loss)
    close(loss, rest, 2 * (N + V + 16), N * loss_size(V, z_loss))
    dz, _ = back(loss)
    assert not dz[:, impossible].any()
    assert np.isfinite(dz).all()


@law(cross_entropy)
def test_cross_entropy_does_not_hide_nan(rng, dtype, N, V):
    z = rng.standard_normal((N, V)).astype(dtype)
    z[0, V // 2] = np.nan
    loss, back = cross_entropy(z, np.zeros(N, int))
    dz, _ = back(np.ones_like(loss))
    assert np.isnan(loss)
    assert np.isnan(dz[0]).all()
    assert np.isfinite(dz[1:]).all()


@pytest.mark.parametrize("on", cross_entropy.backends())
def test_cross_entropy_and_softmax_of_a_row_that_sees_nothing(on):
    """Its lse is 0 and so are its p: if it counts its loss is infinite, but no gradient is NaN."""
    z, t = np.full((2, 3), -np.inf), np.array([IGNORED, 1])
    loss, (_, _, lse) = getattr(getattr(backend, on, None), "cross_entropy", cross_entropy.forward)(*moved(on, [z, t]))
    assert loss == math.inf
    assert not lse.any()
    with backend.use(on):
        _, back = cross_entropy(z, t)
        same(back(1.0)[0], np.array([[0.0, 0, 0], [0, -1, 0]]))
        assert not softmax(z)[0].any()


@pytest.mark.parametrize("on", cross_entropy.backends())
def test_cross_entropy_of_very_many_rows_is_as_accurate_as_that_of_one(on):
    """Each is log 3; were they added up one by one in float32, the mean of 2^18 of them would be off by 1 in 500, and
    that of 2^14 by 500 eps.  On a GPU CuPy adds them up, and the stand-in runs one row after another."""
    N = 2 ** (14 if on == "cuda" else 18)
    with backend.use(on):
        loss, _ = cross_entropy(np.zeros((N, 3), "float32"), np.zeros(N, int))
        close(loss, np.float32(math.log(3)), 8)


each_loss = pytest.mark.parametrize(("loss", "on"), [(op, on) for op in (cross_entropy, linear_cross_entropy)
                                                     for on in op.backends()])


@each_loss
@pytest.mark.parametrize("wrong", [-1, 3, 2 ** 31])
def test_a_target_outside_the_vocabulary_is_refused(loss, on, wrong):
    """Three tokens, three numbers a row: both losses read the same arrays."""
    x, t = (np.eye(3), np.array([2, IGNORED, wrong]))
    inputs = (x, t) if loss is cross_entropy else (x, x, t)
    with backend.use(on), pytest.raises(IndexError, match=rf"target {wrong} is outside the vocabulary of 3 "):
        loss(*inputs)


# --- linear_cross_entropy ---------------------------------------------------------------------------------------------

@law(linear_cross_entropy, settings=every_setting)
def test_linear_cross_entropy_is_linear_then_cross_entropy(rng, N, D, V, settings):
    """Whatever the chunk.  Logits are sums of D products below 8/D, so below 8 as above; the gradients are sums over N
    or V of their errors."""
    x, w = rng.uniform(-2, 2, (N, D)), rng.uniform(-4, 4, (V, D)) / D
    _, t = drawn(rng, N, V, settings["ignore_index"])
    z, linear_back = linear(x, w)
    loss, loss_back = cross_entropy(z, t, **settings)
    dx, dw = linear_back(loss_back(0.7)[0])
    tolerance, size = 4 * (D + N + V + 16), loss_size(V, settings["z_loss"])
    for chunk in (None, 1, 2, 3, 100):
        got, back = linear_cross_entropy(x, w, t, chunk=chunk, **settings)
        close(got, loss, tolerance, N * size)
        for gradient, want in zip(back(0.7), (dx, dw, None), strict=True):
            assert (gradient is None) == (want is None)
            if want is not None:
                close(gradient, want, tolerance, max(N, V) * size)


@pytest.mark.parametrize("on", BACKENDS)
@pytest.mark.parametrize("impossible", [slice(0, 576), slice(576, 1152), slice(1152, 1200)])
def test_linear_cross_entropy_allows_a_block_of_impossible_tokens(on, impossible):
    """Logits of -∞: the loss is that of the other tokens, and they get no gradient."""
    N, V = 5, 1200
    rng = np.random.default_rng(0)
    x, w = rng.uniform(1, 2, (N, 1)), rng.standard_normal((V, 1))
    possible = np.delete(np.arange(V), impossible)
    w[impossible] = -np.inf
    t = rng.integers(len(possible), size=N)
    with backend.use(on), np.errstate(invalid="ignore"):                # dx is made of 0 times -∞
        want, back = linear_cross_entropy(x, w[possible], t)
        loss, back_all = linear_cross_entropy(x, w, possible[t])
        close(loss, want, 2 * (N + V + 16), N * loss_size(V))
        dw = back_all(1.0)[1]
        close(dw[possible], back(1.0)[1], 2 * (N + V + 16), 2)
    assert not dw[impossible].any()


@pytest.mark.parametrize("on", BACKENDS)
def test_linear_cross_entropy_never_holds_all_logits(on):
    """2048 x 4096 logits are 32 MiB in float32; a chunk of 64 rows is 1 MiB.  Beside the gradients there may be the
    chunk's logits, their gradient, what is being made of them and the last chunk's: 6, and one more addend of dw."""
    rng, N, V, D, chunk = np.random.default_rng(0), 2048, 4096, 16, 64
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((N, D), (V, D)))
    t = rng.integers(V, size=N)
    with backend.use(on):
        tracemalloc.start()
        try:
            _, back = linear_cross_entropy(x, w, t, chunk=chunk, label_smoothing=0.1, z_loss=1e-4)
            back(np.float32(1))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    gradients = 2 * (x.nbytes + w.nbytes)                                      # those for dloss = 1, and the scaled
    assert peak <= gradients + 6 * chunk * V * 4 + w.nbytes + 2 ** 16          # row numbers, targets, Python's objects
    assert peak < N * V * 4 / 4 + gradients


@pytest.mark.parametrize(("on", "logits", "temporaries"), [("numpy", 2 ** 23, 6), ("cpu", 2 ** 25, 1)][:len(BACKENDS)])
@pytest.mark.parametrize("V", [2 ** 16, 2 ** 19 + 1])
def test_linear_cross_entropy_left_to_itself_takes_few_mib_of_logits(on, logits, temporaries, V):
    """However many rows there are, here 128 MiB of logits; temporaries as above, the kernel has none."""
    N = 2 ** 25 // V
    x, w = np.ones((N, 1), "float32"), np.zeros((V, 1), "float32")
    with backend.use(on):
        tracemalloc.start()
        try:
            linear_cross_entropy(x, w, np.arange(N), label_smoothing=0.1, z_loss=1e-4)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    gradients = w.nbytes + (w.nbytes if on == "numpy" else 0)                  # dw; one more addend of it
    room = 2 ** 16 + (2 ** 22 if on == "cpu" else 0)                           # a thread's packed blocks
    assert peak <= gradients + temporaries * logits * 1.01 + room


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
def test_in_bfloat16_linear_cross_entropy_keeps_no_logits():
    """Of a chunk of less than 2 x 340 rows there are a block of 576 logits and its gradient, 6 bytes each, and three
    sums for each block: less than 4 MiB.  Packed blocks take 2.  The chunk's logits would take 32."""
    N, V = 500, 2 ** 16
    x, w = np.ones((N, 1), ml_dtypes.bfloat16), np.zeros((V, 1), ml_dtypes.bfloat16)
    tracemalloc.start()
    try:
        with backend.kernel_threads(1):
            linear_cross_entropy(x, w, np.arange(N))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 4 * V + 6 * 2 ** 20


@pytest.mark.parametrize("on", BACKENDS)
@pytest.mark.parametrize("chunk", [None, 1, 16])
@pytest.mark.parametrize("V", [575, 576, 577, 1152, 1153, 1733])
def test_linear_cross_entropy_agrees_with_the_whole_matrix_of_logits(on, chunk, V):
    """At vocabularies of one to four of the kernel's blocks, of 576 tokens; which holds the highest logit changes."""
    N, D = 37, 5
    rng = np.random.default_rng(V)
    x, w, t = rng.standard_normal((N, D)), 4 * rng.standard_normal((V, D)), rng.integers(0, V, N)
    t[:6] = 0, V - 1, IGNORED, 575 % V, 576 % V, 577 % V
    options = {"label_smoothing": 0.1, "z_loss": 0.01}
    z, project_back = linear(x, w)
    loss, loss_back = cross_entropy(z, t, **options)
    dz, _ = loss_back(1.0)
    with backend.use(on):
        value, back = linear_cross_entropy(x, w, t, chunk=chunk, **options)
        got = back(1.0)
    assert value == pytest.approx(loss, rel=1e-14)
    for a, b in zip(got, project_back(dz), strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("on", BACKENDS)
def test_smoothing_is_as_exact_over_a_large_vocabulary(on):
    """The mean logit is a sum of many: a long chain of float32 would lose 1e-4 of it."""
    V = 128_000
    rng = np.random.default_rng(0)
    x, w, t = np.full((2, 1), 10.0), -1.03 + 0.01 * rng.standard_normal((V, 1)), np.array([0, V - 1])
    exact, _ = linear_cross_entropy(x, w, t, label_smoothing=0.1)
    with backend.use(on):
        loss, _ = linear_cross_entropy(x.astype("float32"), w.astype("float32"), t, label_smoothing=0.1)
    assert abs(loss - exact) <= 16 * np.finfo("float32").eps * 10.3            # some roundings of a logit


@pytest.mark.parametrize("on", BACKENDS)
def test_a_row_whose_logits_are_all_minus_infinity_has_an_infinite_loss(on):
    with np.errstate(all="ignore"), backend.use(on):
        loss, _ = linear_cross_entropy(np.ones((1, 1)), np.full((700, 1), -np.inf), np.array([3]))
    assert loss == np.inf


@pytest.mark.parametrize("on", BACKENDS)
def test_linear_cross_entropy_takes_a_row_wider_than_a_chunk(on):
    V = 2 ** 21 + 1
    with backend.use(on):
        loss, _ = linear_cross_entropy(np.ones((1, 1), "float32"), np.zeros((V, 1), "float32"), np.array([V - 1]))
    close(loss, math.log(V), 64, math.log(V))                                  # a pairwise sum of 2^21 ones is exact


@law(linear_cross_entropy)
def test_the_exponentials_of_linear_cross_entropy_are_exact_to_rounding(dtype):
    """x = 1 makes logits of w as they stand, and of dw the p of all but the target; p_v / p_0 = e^(w_v - w_0).

    The logits less their log-sum-exp are below 8, where a rounding is 2 eps; each exponential and the quotient have 1
    or 2 more.  A series that lacks a term is off by 15.
    """
    w = -np.linspace(0, 4, 100, dtype=dtype)[:, None]
    _, back = linear_cross_entropy(np.ones((1, 1), dtype), w, np.array([len(w) - 1]))
    p = back(1.0)[1][:-1, 0].astype("float64")
    want = np.exp(w[:-1, 0].astype("float64"))
    np.testing.assert_allclose(p / p[0], want, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
@pytest.mark.parametrize("dtype", ["float32", "float64", ml_dtypes.bfloat16])
@pytest.mark.parametrize("chunk", [None, 3])
def test_the_gradient_of_the_vocabulary_is_added_where_it_is_kept(dtype, chunk):
    """Or is not made at all; dx and the loss are the same.  Where it cannot be added it is returned, as if alone."""
    cpu, (N, V, D) = backend.cpu, (8, 600, 5)
    rng = np.random.default_rng(0)
    x, w, t = *(rng.standard_normal((n, D)).astype(dtype) for n in (N, V)), np.arange(N)
    loss, saved = cpu.linear_cross_entropy(x, w, t, chunk=chunk)
    dx, dw, _ = cpu.linear_cross_entropy_backward(1, *saved)
    place = np.full((V, D), 2, dw.dtype)
    for into, want in ({1: place}, place), ({1: None}, None):
        got, saved = cpu.linear_cross_entropy(x, w, t, chunk=chunk, into=into)
        *grads, _ = cpu.linear_cross_entropy_backward(1.0, *saved)
        assert got == loss
        assert np.array_equal(grads[0], dx)
        assert grads[1] is want
    half, nothing, _ = cpu.linear_cross_entropy_backward(0.5, *saved)
    assert np.array_equal(half, dx / 2)
    assert nothing is None
    # sums of N products, of at most |x| / N each: N roundings of a number below 2, and N of one below 4
    np.testing.assert_allclose(place, 2 + dw, rtol=0, atol=N * 4 * np.finfo(place.dtype).eps)
    assert dw.any(axis=1).all()
    for left in (np.zeros((V, 2 * D), dw.dtype)[:, ::2], np.zeros((D, V), dw.dtype).T):
        _, saved = cpu.linear_cross_entropy(x, w, t, chunk=chunk, into={1: left})
        assert np.array_equal(cpu.linear_cross_entropy_backward(1, *saved)[1], dw)
        assert not left.any()
    with pytest.raises(ValueError, match="shapes"):
        cpu.linear_cross_entropy(x, w, t, into={1: place[:4]})
    with pytest.raises(TypeError, match="mixed precision"):
        cpu.linear_cross_entropy(x, w, t, into={1: place.astype("float16")})
