"""The CUDA kernels, run on the CPU: what tests/test_ops.py cannot see of them.

Other orders of the threads and blocks, races and stray accesses; that nothing waits; ids and logits that no problem
has; and the kernels that belong to no op.
"""
import importlib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import pyllama.ops  # noqa: F401 -- registers
from pyllama.op import OPS
from pyllama.ops.dropout import dropout
from pyllama.ops.rope import rope
from pyllama.rng import generator
from pyllama.testing import problem
from pyllama.testing.problems import Sizes, choose_by
from pyllama.training import optim
from tests import fakecupy

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="kernels are compiled by g++")
KERNELS = [name for name in OPS if Path(__file__).parents[1].joinpath(f"csrc/cuda/{name}.cu").exists()]
each_kernel = pytest.mark.parametrize("name", KERNELS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
INF = np.inf


@pytest.fixture(scope="module")
def cuda():
    with fakecupy.installed():
        yield importlib.import_module("pyllama.cuda")


@pytest.fixture
def there(cuda):
    """Takes arrays to the device; None stands for an optional input that is left out."""
    return lambda *xs: [None if x is None else fakecupy.module().asarray(x) for x in xs]


@pytest.fixture
def watched(monkeypatch):
    """Kernels run in the build that finds races and stray accesses: KernelError says where."""
    monkeypatch.setattr(fakecupy, "checked", True)


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def of_several(xs):
    return xs if len(xs) > 1 else xs[0]


# --- every op with a kernel -------------------------------------------------------------------------------------------

def both_passes(cuda, there, name, seed, **axes):
    """The outputs and the gradients of a random problem; some axes may be given."""
    op, choose = OPS[name], choose_by(np.random.default_rng(seed))
    sizes = Sizes(choose)
    sizes.update({"G": 2} | axes)                           # groups of heads: thousands would show no more
    inputs, options, dy = problem(op, choose, "float32", sizes)
    y, saved = getattr(cuda, name)(*there(*inputs), **options)
    grads = getattr(cuda, f"{name}_backward")(of_several(there(*op.each(dy))), *saved, **options)
    return [a for a in (*op.each(y), *grads) if a is not None]


@each_kernel
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_threads_and_blocks_does_not_show(cuda, there, monkeypatch, name, seed):
    results = []
    for order in ("forward", "reverse", "random"):
        monkeypatch.setattr(fakecupy, "order", order)
        results.append([a.get() for a in both_passes(cuda, there, name, seed)])
    for first, second, third in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)


@each_kernel
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("watched")
def test_kernels_neither_race_nor_stray(cuda, there, name, seed):
    both_passes(cuda, there, name, seed)


@each_kernel
@pytest.mark.usefixtures("watched")
def test_nor_do_they_in_rows_of_several_warps(cuda, there, name):
    both_passes(cuda, there, name, 0, D=700, V=700)


@pytest.mark.usefixtures("watched")
def test_logits_become_gradients_in_place(cuda, there):
    """Without label smoothing, and the barrier that it needs; in rows of several warps."""
    inputs = normal(3, 4), normal(500, 4, seed=1), np.array([7, 499, 250])
    loss, saved = cuda.linear_cross_entropy(*there(*inputs))
    exact, exactly = OPS["linear_cross_entropy"].forward(*inputs)
    for a, e in zip((loss, *saved), (exact, *exactly), strict=True):
        np.testing.assert_allclose(a.get(), e, rtol=1e-12, atol=1e-12)


@each_kernel
def test_the_host_does_not_wait(cuda, there, name):
    with fakecupy.counting() as counts:
        both_passes(cuda, there, name, 0)
    assert counts.syncs == counts.d2h == 0


# --- what no problem draws --------------------------------------------------------------------------------------------

@each_dtype
def test_softmax_of_masked_logits(cuda, there, dtype):
    x = normal(5, 700, dtype=dtype)
    x[0, 3:], x[1], x[2, 650], x[3, 1::2], x[4] = -INF, -INF, 600, -INF, x[4] - 1000
    y = cuda.softmax(*there(x))[0].get()
    exact = OPS["softmax"].forward(x.astype(np.float64))[0]
    np.testing.assert_allclose(y, exact, rtol=700 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)
    assert not y[1].any()


@pytest.mark.parametrize("bad", [np.nan, INF])
def test_a_logit_that_is_not_a_number_shows_in_its_row_alone(cuda, there, bad):
    x = normal(2, 70)
    x[0, 69] = bad
    y = cuda.softmax(*there(x))[0].get()
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("target", [-1, 40, 10**12, -10**12])
@pytest.mark.usefixtures("watched")
def test_a_target_outside_the_vocabulary_makes_its_row_and_the_loss_nan(cuda, there, target):
    z, x, w, t = normal(4, 40), normal(4, 6), normal(40, 6), np.array([3, target, -100, 39])
    loss, saved = cuda.cross_entropy(*there(z, t))
    dz, _ = cuda.cross_entropy_backward(1.0, *saved)
    fused, (dx, _) = cuda.linear_cross_entropy(*there(x, w, t), chunk=3)
    assert np.isnan([loss.get(), fused.get()]).all()
    for d in (dz, dx):
        assert np.isnan(d.get()).all(axis=1).tolist() == [False, True, False, False]
        assert np.isfinite(d.get()[[0, 2, 3]]).all()


@pytest.mark.usefixtures("watched")
def test_an_id_outside_the_vocabulary_gives_nan_and_adds_nothing(cuda, there):
    ids, w, dy = np.array([[0, 6, -1], [7, 3, 10**12]]), normal(7, 33), normal(2, 3, 33)
    y, saved = cuda.embedding(*there(ids, w))
    known = (ids >= 0) & (ids < 7)
    assert (np.isnan(y.get()).all(axis=-1) == ~known).all()
    np.testing.assert_array_equal(y.get()[known], w[ids[known]])
    dw = cuda.embedding_backward(*there(dy), *saved)[1].get()
    assert sorted(np.flatnonzero(dw.any(axis=1))) == [0, 3, 6]


@pytest.mark.parametrize("D", [256, 1030])
@each_dtype
def test_rows_of_equal_ids_are_added_in_their_order(cuda, there, dtype, D):
    """The same bits as NumPy's, for rows that a block just fills and for those that take several."""
    ids, dy = np.random.default_rng(1).integers(3, size=(5, 20)), normal(5, 20, D, dtype=dtype)
    into = normal(3, D, dtype=dtype, seed=1)
    dw, = there(into)
    assert cuda.embedding_backward_into(*there(dy, ids), dw, into={1: dw})[1] is dw
    np.add.at(into, ids, dy)
    np.testing.assert_array_equal(dw.get(), into)


@pytest.mark.parametrize(("n", "start"), [(5000, 0), (5000, 3), (12, 0), (1, 7), (4, 8), (7, 2**40 + 5), (0, 5)])
@each_dtype
@pytest.mark.usefixtures("watched")
def test_dropout_draws_numpy_s_stream(cuda, there, dtype, n, start):
    """At a rate that is one of the draws: the number it belongs to is kept."""
    key = 1, "a"
    x, rate = normal(n, dtype=dtype), float(generator(*key).random(1, np.float32)[0])
    options = {"rate": rate, "key": key, "start": start}
    np.testing.assert_array_equal(cuda.dropout(*there(x), **options)[0].get(), dropout.forward(x, **options)[0])


@pytest.mark.parametrize("tanh", [False, True])
@each_dtype
def test_gelu_does_not_cancel_in_the_lower_tail(cuda, there, dtype, tanh):
    """The exponents, at most 1 + x², are off by four roundings, and the rest by no more than eight."""
    x = -np.linspace(0.1, 10, 100).astype(dtype)
    wide = x.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    exact = wide * (1 / (1 + np.exp(-2 * u)) if tanh else np.vectorize(math.erfc)(-wide / np.sqrt(2)) / 2)
    y = cuda.gelu(*there(x), tanh=tanh)[0].get()
    assert (np.abs(y - exact) <= (4 * (1 + wide**2) + 8) * np.finfo(dtype).eps * np.abs(exact)).all()


def test_rope_reads_heads_where_they_lie_and_keeps_their_order(cuda, there):
    heads, = there(normal(2, 5, 3, 8))                                              # [B T H K]
    y, _ = cuda.rope(heads.swapaxes(1, 2))
    assert y.swapaxes(1, 2).flags.c_contiguous
    np.testing.assert_allclose(y.get(), rope.forward(heads.get().swapaxes(1, 2))[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("rows", [513, 1300])
def test_norms_add_the_shares_of_many_rows(cuda, there, rows):
    """More than there are blocks."""
    x, w, b, dy = normal(rows, 5), normal(5), normal(5), normal(rows, 5, seed=1)
    for name, inputs in (("rms_norm", (x, w)), ("layer_norm", (x, w, b))):
        grads = getattr(cuda, f"{name}_backward")(*there(dy), *getattr(cuda, name)(*there(*inputs))[1])
        exact = OPS[name].backward(dy, *OPS[name].forward(*inputs)[1])
        for d, e in zip(grads, exact, strict=True):
            np.testing.assert_allclose(d.get(), e, rtol=0, atol=rows * np.finfo(float).eps * np.abs(e).max())


# --- no ops -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("n", [0, 1, 33, 3000])
@pytest.mark.parametrize(("rule", "options"), [
    ("adamw", {"t": 1, "betas": (0.9, 0.95), "eps": 1e-8}), ("adamw", {"t": 50, "betas": (0.9, 0.95), "eps": 1e-8}),
    ("sgd", {"momentum": 0.0, "nesterov": False}), ("sgd", {"momentum": 0.9, "nesterov": False}),
    ("sgd", {"momentum": 0.9, "nesterov": True})])
@pytest.mark.usefixtures("watched")
def test_updates_are_the_rule_s(cuda, there, rule, options, n, on_device):
    p, g, m, v = (normal(n, seed=i) for i in range(4))
    state = [m, v * v] if rule == "adamw" else [v] if options["momentum"] else []
    scale, options = np.array(0.3), options | {"lr": 0.01, "decay": 0.1}
    updated, gradient, *kept = there(p, g, *state)
    with fakecupy.counting() as counts:
        getattr(cuda, rule)(updated, gradient, *kept, scale=there(scale)[0] if on_device else 0.3, **options)
    assert counts.syncs == 0
    getattr(optim, rule)(p, g, *state, scale=0.3, **options)
    for a, b in zip((updated, *kept), (p, *state), strict=True):            # eight roundings at most
        np.testing.assert_allclose(a.get(), b, rtol=0, atol=8 * np.finfo(float).eps * np.abs(b).max(initial=1))


def test_updates_refuse_what_they_could_only_copy(cuda, there):
    p, g = there(normal(10)[::2], normal(5))
    p = there(normal(10))[0][::2]
    with pytest.raises(ValueError, match="updated in place must be contiguous"):
        cuda.sgd(p, g, lr=0.1, decay=0.0, scale=1.0, momentum=0.0, nesterov=False)


@pytest.mark.parametrize("n", [0, 1, 33, 5000])
@each_dtype
@pytest.mark.usefixtures("watched")
def test_sum_and_norm(cuda, there, dtype, n):
    gs = [normal(n, dtype=dtype, seed=i) for i in range(3)]
    lanes = there(*gs)
    norm = cuda.sum_and_norm(lanes)
    total = gs[0] + gs[1] + gs[2]
    np.testing.assert_array_equal(lanes[0].get(), total)
    assert (norm.dtype, norm.shape) == (np.float64, ())
    exact = np.linalg.norm(total.astype(np.float64))
    assert abs(norm.get() - exact) <= (n + 2) * np.finfo(float).eps * exact


def test_sum_and_norm_of_squares_that_float32_lacks(cuda, there):
    assert cuda.sum_and_norm(there(np.full(4, 1e30, np.float32))).get() == 2 * float(np.float32(1e30))
