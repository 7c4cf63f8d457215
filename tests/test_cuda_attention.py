"""What the laws of attention do not reach of its CUDA kernels: keys shared among blocks, every compiled width, strided
views, and bits that depend on no order."""
import numpy as np
import pytest

from pyllama.ops import attention
from pyllama.ops.attention import biased, by_head, factor, rows, scores, summed_like, visible
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


def both_passes(cuda, device, *extra, **options):
    """y, lse, dq, dk, dv and, if there is a bias, its gradient."""
    q, k, v, dy = device
    y, saved = cuda.attention(q, k, v, *extra, **options)
    return [a.get() for a in (y, saved[-1], *cuda.attention_backward(dy, *saved, **options)) if a is not None]


def check(got, host, mask, segments=None, bias=None, **options):
    """Equal to the reference in float64 but for rounding.

    A score is off by K + 2 roundings of A, the largest Σ |q| |k| / √K, and the log-sum-exp by as many and S: that is p,
    relatively.  dp and δ are off by K, and δ by p, too.  A result is a sum of S or R T products, and off by a rounding
    for each, relatively to the sum of their sizes.
    """
    q, k, v, dy = (a.astype(float) for a in host)
    bias = None if bias is None else bias.astype(float)
    (*_, R, T, K), S = q.shape, k.shape[-2]
    y, saved = attention.forward(q, k, v, mask, segments, bias, **options)
    wanted = [y, saved[-1], *(d for d in attention.backward(dy, *saved, **options) if d is not None)]
    seen = visible(q, k, mask, segments, options.get("causal", False), options.get("window"))
    scale = options.get("scale")
    p = np.exp(biased(scores(q, k, scale, options.get("softcap")), bias, seen, q) - saved[-1])
    q_, k_, v_, dy_ = (np.abs(a) for a in (rows(q), k, v, rows(dy)))
    A = (q_ @ k_.swapaxes(-1, -2)).max() * factor(q, scale) + (0 if bias is None else np.abs(bias).max(initial=0))
    dp = dy_ @ v_.swapaxes(-1, -2)
    da = p * (dp + np.sum(p * dp, axis=-1, keepdims=True))
    dz = da * factor(q, scale)
    sizes = [p @ v_, A + np.abs(saved[-1]), dz @ k_, dz.swapaxes(-1, -2) @ q_, p.swapaxes(-1, -2) @ dy_]
    sizes += [] if bias is None else [summed_like(bias, by_head(da, q))]
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


# --- masks of pairs, segments, a bias, a scale, a softcap -------------------------------------------------------------

EXTRA = {                                                   # precision, B G R T S K, axes 1 of the bias, options
    "everything": ("float32", (2, 2, 2, 18, 40, 8), (), {"causal": True, "scale": 0.5, "softcap": 2.0}),
    "everything in float64": ("float64", (2, 1, 3, 35, 33, 70), (), {"window": 9, "scale": 0.2, "softcap": 1.5}),
    "a bias for all texts": ("float32", (2, 2, 2, 20, 20, 4), (0,), {"causal": True}),
    "a bias for all heads": ("float64", (2, 1, 3, 9, 40, 33), (1,), {}),
    "one bias, more queries than keys": ("float32", (2, 2, 1, 40, 9, 130), (0, 1), {"softcap": 3.0}),
    "a query and many keys": ("float32", (2, 1, 3, 1, 600, 64), (0,), {"causal": True, "scale": 1.0}),
}


def extra(dtype, B, G, R, T, S, shared):
    """mask of pairs, segments and bias; each hides or adds something else for each text."""
    rng = np.random.default_rng(S)
    shape = [1 if axis in shared else n for axis, n in enumerate((B, G * R, T, S))]
    segments = np.sort(rng.integers(3, size=(B, S)), axis=1) - np.arange(B)[:, None]
    return rng.random((B, T, S)) < 0.8, segments, rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("dtype", "sizes", "shared", "options"), EXTRA.values(), ids=EXTRA)
@pytest.mark.parametrize("given", ["all", "mask", "segments", "bias", "options"])
def test_attention_s_extra_inputs_are_right_and_neither_race_nor_stray(cuda, monkeypatch, dtype, sizes, shared, options,
                                                                      given):
    monkeypatch.setattr(fakecupy, "checked", given == "all")
    host, device = drawn(cuda, dtype, *sizes, 1, 2)
    inputs = [x if given in ("all", name) else None
              for name, x in zip(("mask", "segments", "bias"), extra(dtype, *sizes[:5], shared), strict=True)]
    there = [None if x is None else fakecupy.module().asarray(x) for x in inputs]
    with fakecupy.counting() as counts:
        got = both_passes(cuda, device, *there, **options)
    assert counts.launches in (4, 5)                        # not the reference
    check(got, host, *inputs, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("K", [1, 32, 64, 96, 128, 192, 256])
def test_attention_s_extra_inputs_in_every_width(cuda, dtype, K):
    host, device = drawn(cuda, dtype, 1, 1, 2, 18, 37, K)
    inputs = extra(dtype, 1, 1, 2, 18, 37, ())
    got = both_passes(cuda, device, *map(fakecupy.module().asarray, inputs), scale=0.1, softcap=2.0)
    check(got, host, *inputs, scale=0.1, softcap=2.0)


def test_the_order_of_threads_changes_no_bit_of_attention_s_extra_inputs(cuda, monkeypatch):
    _, device = drawn(cuda, "float32", 2, 1, 2, 35, 40, 20, 1, 1)
    inputs = [*map(fakecupy.module().asarray, extra("float32", 2, 1, 2, 35, 40, (0,)))]
    expected = both_passes(cuda, device, *inputs, softcap=2.0)
    for order in ("forward", "reverse", "random"):
        monkeypatch.setattr(fakecupy, "order", order)
        for got, want in zip(both_passes(cuda, device, *inputs, softcap=2.0), expected, strict=True):
            same(got, want)
