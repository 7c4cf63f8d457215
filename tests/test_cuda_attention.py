"""What the laws of attention do not reach of its CUDA kernels: keys shared among blocks, every compiled width, strided
views, and bits that depend on no order."""
import math

import numpy as np
import pytest

from pyllama.ops import attention
from pyllama.ops.attention import biased, rows, scores, visible
from tests import fakecupy
from tests.cuda_on_cpu.build import missing
from tests.laws import close, same

pytestmark = pytest.mark.skipif(bool(missing), reason=f"the executor needs {missing}")


@pytest.fixture
def cuda():
    with fakecupy.installed():
        from pyllama import cuda
        yield cuda


def drawn(cuda, dtype, B, G, R, T, S, K, before=0, after=0):
    """q, k, v, dy on the host and on the device: there as a model hands them over, [B T heads K] seen as [B heads T K],
    with other columns before and after, not as many for each."""
    rng, host, device = np.random.default_rng(K), [], []
    for i, shape in enumerate([(B, T, G, R), (B, S, G), (B, S, G), (B, T, G, R)]):
        whole = rng.standard_normal((*shape, before + K + after + 4 * i)).astype(dtype)
        host.append(np.moveaxis(whole[..., before:before + K], 1, -2))
        device.append(fakecupy.module().moveaxis(fakecupy.module().asarray(whole)[..., before:before + K], 1, -2))
    return host, device


def both_passes(cuda, device, mask, **options):
    q, k, v, dy = device
    y, saved = cuda.attention(q, k, v, mask, **options)
    dq, dk, dv, *_ = cuda.attention_backward(dy, *saved, **options)
    return [a.get() for a in (y, saved[-1], dq, dk, dv)]


def check(got, host, mask, **options):
    """Equal to the reference in float64 but for rounding.

    A score is off by K + 2 roundings of A, the largest Σ |q| |k| / √K, and the log-sum-exp by as many and S: that is p,
    relatively.  dp and δ are off by K, and δ by p, too.  A result is a sum of S or R T products, and off by a rounding
    for each, relatively to the sum of their sizes.
    """
    q, k, v, dy = (a.astype(float) for a in host)
    (*_, R, T, K), S = q.shape, k.shape[-2]
    y, saved = attention.forward(q, k, v, mask, **options)
    wanted = [y, saved[-1], *attention.backward(dy, *saved, **options)[:3]]
    seen = visible(q, k, mask, None, options.get("causal", False), options.get("window"))
    p = np.exp(biased(scores(q, k, None, None), None, seen, q) - saved[-1])
    q_, k_, v_, dy_ = (np.abs(a) for a in (rows(q), k, v, rows(dy)))
    A = (q_ @ k_.swapaxes(-1, -2)).max() / math.sqrt(K)
    dp = dy_ @ v_.swapaxes(-1, -2)
    da = p * (dp + np.sum(p * dp, axis=-1, keepdims=True)) / math.sqrt(K)
    sizes = [p @ v_, A + np.abs(saved[-1]), da @ k_, da.swapaxes(-1, -2) @ q_, p.swapaxes(-1, -2) @ dy_]
    for a, b, size in zip(got, wanted, sizes, strict=True):
        close(a, b, 4 * ((K + 2) * (1 + A) + S + R * T + 8), size.reshape(a.shape))


PROBLEMS = {                                                # precision, B G R T S K, columns more, keys hidden, options
    "two tiles of queries": ("float32", (2, 2, 2, 70, 75, 4), 0, 9, {"causal": True}),
    "two pieces of a width": ("float64", (1, 2, 3, 20, 40, 33), 1, 0, {"window": 5}),
    "a query and many keys": ("float32", (2, 2, 3, 1, 700, 70), 0, 500, {}),
    "more queries than keys": ("float64", (1, 1, 2, 40, 9, 130), 0, 0, {"causal": True, "window": 3}),
    "few queries and many keys": ("float32", (1, 1, 3, 20, 300, 128), 0, 100, {"causal": True}),
}


@pytest.mark.parametrize(("dtype", "sizes", "after", "hidden", "options"), PROBLEMS.values(), ids=PROBLEMS)
def test_kernels_are_right_and_neither_race_nor_stray(cuda, monkeypatch, dtype, sizes, after, hidden, options):
    monkeypatch.setattr(fakecupy, "checked", True)
    host, device = drawn(cuda, dtype, *sizes, 0, after)
    B, S = sizes[0], sizes[4]
    mask = (np.arange(B * S).reshape(B, S) % 7 > 0) & (np.arange(S) >= hidden)
    check(both_passes(cuda, device, fakecupy.module().asarray(mask), **options), host, mask, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("K", [1, 32, 33, 64, 65, 96, 100, 130, 256])
def test_every_width(cuda, dtype, K):
    host, device = drawn(cuda, dtype, 1, 1, 2, 18, 37, K)
    check(both_passes(cuda, device, None, causal=True), host, None, causal=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heads_too_wide_for_the_kernels_get_the_reference(cuda, dtype):
    """In both passes, on the device."""
    _, (q, k, v, dy) = drawn(cuda, dtype, 1, 1, 2, 18, 37, 257)
    assert cuda.attention(q, k, v) is NotImplemented
    with fakecupy.counting() as counts:
        y, back = attention(q, k, v, causal=True)
        grads = back(dy)
    assert counts.launches == 0
    expected, saved = attention.forward(q, k, v, causal=True)
    for a, b in zip((y, *grads), (expected, *attention.backward(dy, *saved, causal=True)[:3]), strict=True):
        same(a.get(), b.get())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("R", "T"), [(1, 1), (4, 1), (3, 5), (1, 40)])
@pytest.mark.parametrize("options", [{"causal": True}, {"window": 130}])
def test_blocks_share_the_keys_of_few_queries(cuda, dtype, R, T, options):
    """Some have none that is not hidden; of the first text, all."""
    host, device = drawn(cuda, dtype, 2, 1, R, T, 600, 8)
    mask = np.zeros((2, 600), bool)
    mask[1, 470:530] = True
    with fakecupy.counting() as counts:
        got = both_passes(cuda, device, fakecupy.module().asarray(mask), **options)
    assert counts.launches == 5                             # attention, join; delta, q, kv
    check(got, host, mask, **options)


def test_nothing_waits(cuda):
    _, (q, k, v, dy) = drawn(cuda, "float32", 1, 1, 1, 1, 300, 4)
    mask = fakecupy.module().asarray(np.ones((1, 300), int))
    with fakecupy.counting() as counts:
        _, saved = cuda.attention(q, k, v, mask)
        cuda.attention_backward(dy, *saved)
    assert counts == fakecupy.Counts(launches=5)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 1), (4, 4)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_order_of_threads_and_the_strides_change_no_bit(cuda, monkeypatch, dtype, before, after, causal):
    host, device = drawn(cuda, dtype, 2, 2, 3, 70, 75, 20, before, after)
    options = {"causal": causal, "window": 5}
    mask = np.arange(150).reshape(2, 75) % 4
    on_device = fakecupy.module().asarray(mask)
    expected = both_passes(cuda, [fakecupy.module().ascontiguousarray(a) for a in device], on_device, **options)
    check(expected, host, mask, **options)
    for order in ("forward", "reverse", "random"):
        monkeypatch.setattr(fakecupy, "order", order)
        for got, want in zip(both_passes(cuda, device, on_device, **options), expected, strict=True):
            same(got, want)


def test_results_merge_their_heads_without_a_copy(cuda):
    _, (q, k, v, dy) = drawn(cuda, "float32", 2, 2, 3, 5, 7, 4)
    y, saved = cuda.attention(q, k, v)
    assert all(a is b for a, b in zip(saved[:3], (q, k, v), strict=True))
    for a in (y, *cuda.attention_backward(dy, *saved)[:3]):
        merged = fakecupy.module().moveaxis(a, -2, 1)
        assert merged.strides == np.empty(merged.shape, merged.dtype).strides
