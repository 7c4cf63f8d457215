"""Attention in bfloat16: its error is within a bound derived here, on random and on adversarial inputs.

u = 2⁻⁸ is the unit roundoff of bfloat16, ε = 2⁻²⁴ that of float32; γ(n) = n ε / (1 - n ε) bounds the relative error of
a sum of n products, each exact, in any order (Higham, 2002, section 3.1).

Scores      z is a sum of K products, times the scale; softcap and bias follow, and then 2^x in place of e^x:
            |δa| ≤ γ(K) scale Σ |q k| + 8 ε max |a|, the maximum over the keys that a query sees.
Weights     With |δ| ≤ 2⁻²¹ for a power of two, and one more factor for each of C strips of 128 keys or less:
            e^a has the relative error η = exp(max |δa| + 2⁻²¹ (C + 2)) - 1.
Forward     y = Σ e^a v / Σ e^a.  Above, e^a is rounded to bfloat16 as a factor; below, it is not:
            |δy| ≤ ((1 + u) (1 + η)² (1 + γ(S + 4))² - 1) Σ p |v|.
Backward    p = e^(a - lse) has the error η of e^a and that of lse: π = (1 + η)² (1 + γ(8))- 1.
            dv = Σ p dy:      |δdv| ≤ ((1 + u) (1 + π) (1 + γ(R T)) - 1) Σ p |dy|
            dp = Σ dy v:      |δdp| ≤ γ(K) Σ |dy v|
            δ = Σ dy y, of the rounded y:      e_δ = γ(K) Σ |dy| (|y| + |δy|) + Σ |dy| |δy|
            da = p (dp - δ):  e_da = (1 + π) p (e_dp + e_δ) + (π + 4 ε) p |dp - δ|
            dz = scale da, or with a softcap c scale da (1 - tanh²), whose derivative is less than 1 in z / c:
                              e_dz = scale (e_da + p |dp - δ| (|δz| / c + 8 ε))
            Rounded as a factor, dz has the error e = e_dz + u (|dz| + e_dz).  Sums of S or R T products add theirs:
            dq = Σ dz k:      |δdq| ≤ Σ e |k| + γ(S + 4) Σ (|dz| + e) |k|, and dk alike.
Results     are rounded: u |result| more.
Denormals   Numbers below t = 2⁻¹²⁵ may count as 0, factors and products alike: e⁻⁸⁷ < t is where a softmax ends, and
            2⁻¹²⁶ the normal range.  That is t (Σ |a| + Σ |b| + 2 n) more for a sum of n products a b, and t more for
            a number that is rounded, for p, and for a product of p and dp - δ.
"""
import ml_dtypes
import numpy as np
import pytest

from pyllama import backend
from pyllama.ops import attention
from pyllama.ops.attention import biased, by_head, factor, rows, scores, summed_like, visible

BF16 = np.dtype(ml_dtypes.bfloat16)
NAMES = ["y", "dq", "dk", "dv", "dbias"]
U, EPS, KEYS = 2.0 ** -8, 2.0 ** -24, 128
LEAST = 2.0 ** -125


def gamma(n):
    return n * EPS / (1 - n * EPS)


def rounded(exact, error):
    return error + U * (np.abs(exact) + error) + LEAST


def lost(a, b):
    """Of denormals, in a [... M N] @ b [... N K]"""
    return LEAST * (np.abs(a).sum(-1, keepdims=True) + np.abs(b).sum(-2, keepdims=True) + 2 * a.shape[-1])


def bounds(q, k, v, dy, mask=None, segments=None, bias=None, *, causal=False, window=None, scale=None, softcap=None):
    """[(exact, bound), ...] of y, dq, dk, dv and, if there is one, dbias, by the docstring; in float64."""
    (B, G, R, T, K), S = q.shape, k.shape[2]
    seen, size = visible(q, k, mask, segments, causal, window), abs(factor(q, scale))
    u = scores(q, k, scale, softcap)
    a = biased(u, bias, seen, q)
    top = a.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(a - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    p = weights / np.where(total == 0, 1, total)

    z_error = gamma(K) * size * (rows(np.abs(q)) @ np.abs(k).swapaxes(-1, -2))
    visible_a = np.where(p > 0, np.abs(a), 0)
    a_error = np.where(p > 0, z_error, 0) + 8 * EPS * visible_a.max(-1, keepdims=True, initial=0)
    eta = np.expm1(a_error.max(-1, keepdims=True, initial=0) + 2.0 ** -21 * (-(-S // KEYS) + 2))
    y = p @ v
    y_error = ((1 + U) * (1 + eta) ** 2 * (1 + gamma(S + 4)) ** 2 - 1) * (p @ np.abs(v)) + lost(p, v)
    yield y.reshape(q.shape), rounded(y, y_error).reshape(q.shape)

    pi, d = (1 + eta) ** 2 * (1 + gamma(8)) - 1, rows(dy)
    y_error = rounded(y, y_error)
    vt = v.swapaxes(-1, -2)
    dp, dp_error = d @ vt, gamma(K) * (np.abs(d) @ np.abs(vt)) + lost(d, vt)
    delta = np.sum(d * y, -1, keepdims=True)
    delta_error = np.sum(np.abs(d) * (gamma(K) * (np.abs(y) + y_error) + y_error), -1, keepdims=True)
    delta_error += LEAST * np.sum(np.abs(d) + np.abs(y) + y_error + 2, -1, keepdims=True)
    da, da_error = p * (dp - delta), (1 + pi) * p * (dp_error + delta_error) + (pi + 4 * EPS) * p * np.abs(dp - delta)
    da_error += LEAST * (np.abs(dp - delta) + dp_error + delta_error + 1)
    slope = 1 if softcap is None else 1 - (u / softcap) ** 2
    slope_error = 4 * EPS if softcap is None else z_error / softcap + 8 * EPS
    dz, dz_error = size * da * slope, size * (da_error + np.abs(da) * slope_error)
    dz_error = rounded(dz, dz_error)
    more = np.abs(dz) + dz_error
    keys, queries = np.abs(k), np.abs(rows(q))
    sign = np.sign(factor(q, scale))
    dq = sign * dz @ k
    yield dq.reshape(q.shape), rounded(dq, (dz_error + gamma(S + 4) * more) @ keys + lost(more, k)).reshape(q.shape)
    dz_error, more, pt = (x.swapaxes(-1, -2) for x in (dz_error, more, p))
    dk = sign * dz.swapaxes(-1, -2) @ rows(q)
    yield dk, rounded(dk, (dz_error + gamma(R * T + 4) * more) @ queries + lost(more, queries))
    dv_error = pt * ((1 + U) * (1 + pi.swapaxes(-1, -2)) * (1 + gamma(R * T)) - 1)
    dv = pt @ d
    yield dv, rounded(dv, dv_error @ np.abs(d) + lost(pt, d))
    if bias is not None:
        dbias, error = (summed_like(bias, by_head(x, q)) for x in (da, da_error + gamma(B * G * R) * np.abs(da)))
        yield dbias, rounded(dbias, error)


def drawn(rng, B, G, R, T, S, K):
    return [rng.standard_normal(shape).astype(BF16) for shape in
            ((B, G, R, T, K), (B, G, S, K), (B, G, S, K), (B, G, R, T, K))]


def large_scores(q, k, v, dy):
    return [(30 * q.astype("float32")).astype(BF16), k, v, dy]


def one_key_wins(q, k, v, dy):
    """Each query is a multiple of a key."""
    T, S = q.shape[3], k.shape[2]
    like = 20 * k[:, :, None, np.arange(T) % S].astype("float32")
    return [(like + np.zeros(q.shape, "float32")).astype(BF16), k, v, dy]


def values_cancel(q, k, v, dy):
    """Weights are almost equal, values ±1 by turns: y is what rounding leaves."""
    v = np.where(np.arange(v.shape[2]) % 2, 1, -1)[:, None] + np.zeros(v.shape)
    return [(q.astype("float32") / 64).astype(BF16), k, v.astype(BF16), dy]


def slopes_cancel(q, k, v, dy):
    """All values are alike, so dp - δ is."""
    return [q, k, v[:, :, :1] + np.zeros(v.shape, BF16), dy]


def tiny(q, k, v, dy):
    """Values and dy below the normal range."""
    return [q, k, (v.astype("float32") * 2.0 ** -128).astype(BF16), (dy.astype("float32") * 2.0 ** -128).astype(BF16)]


def as_drawn(*inputs):
    return list(inputs)


KINDS = [as_drawn, large_scores, one_key_wins, values_cancel, slopes_cancel, tiny]
SHAPES = [(2, 2, 1, 70, 70, 32), (1, 1, 3, 5, 200, 48), (1, 1, 2, 300, 300, 17), (2, 1, 1, 1, 90, 64),
          (1, 1, 2, 150, 20, 8), (1, 1, 1, 33, 700, 80), (1, 1, 1, 290, 290, 64), (2, 1, 1, 7, 7, 1)]
OPTIONS = [{}, {"causal": True}, {"causal": True, "window": 20}, {"window": 3}, {"softcap": 2.0, "scale": 0.3},
           {"scale": -0.5, "causal": True}]
HIDING = ["", "keys", "pairs", "segments", "bias", "shared bias"]


def hidden(rng, how, B, H, T, S):
    """mask, segments, bias"""
    if how == "keys":
        return rng.integers(2, size=(B, S)), None, None
    if how == "pairs":
        return rng.integers(2, size=(B, T, S)), None, None
    if how == "segments":
        return None, np.sort(rng.integers(4, size=(B, S)), axis=-1), None
    if how:
        return None, None, rng.standard_normal((1, H, T, S) if how == "bias" else (B, 1, T, S)).astype(BF16)
    return None, None, None


def wide(x):
    return x.astype("float64") if x is not None and x.dtype == BF16 else x


def run(inputs, dy, options):
    y, back = attention(*inputs, **options)
    return [y, *(d for d in back(dy) if d is not None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_within_the_bound(shape, kind):
    rng = np.random.default_rng(0)
    B, G, R, T, S, _ = shape
    for i, options in enumerate(OPTIONS):
        for how in sorted({"", HIDING[i - KINDS.index(kind)]}):             # all pairs of both, over the kinds
            *inputs, dy = kind(*drawn(rng, *shape))
            inputs += hidden(rng, how, B, G * R, T, S)
            wanted = bounds(*map(wide, (*inputs[:3], dy, *inputs[3:])), **options)
            for name, got, (want, error) in zip(NAMES, run(inputs, dy, options), wanted, strict=False):
                assert got.dtype == BF16
                excess = np.abs(wide(got) - want) - error
                assert np.all(excess <= 0), (name, options, how, excess.max())


@pytest.mark.parametrize("how", HIDING[:4])
@pytest.mark.parametrize(("T", "S"), [(1, 5), (70, 70), (40, 130), (130, 40), (290, 290)])
def test_every_pair_that_is_seen_has_its_weight_and_no_other(T, S, how):
    """All scores are 0, values and dy are unit vectors: so y is p, and dv is pᵀ, 1 / n where a query sees n keys.

    Both are rounded once, for e⁰ is 1 and dv is a number rounded as a factor.  A pair that is lost or too much shows,
    wherever tiles begin.
    """
    rng, K = np.random.default_rng(3), max(T, S)
    q, k = np.zeros((2, 1, 1, T, K), BF16), np.zeros((2, 1, S, K), BF16)
    v, dy = (np.eye(n, K, dtype=BF16) + np.zeros((*shape, n, K), BF16) for n, shape in ((S, (2, 1)), (T, (2, 1, 1))))
    for options in ({}, {"causal": True}, {"causal": True, "window": 20}, {"window": 3}):
        mask, segments, _ = hidden(rng, how, 2, 1, T, S)
        seen = visible(q, k, mask, segments, options.get("causal", False), options.get("window"))
        p = seen / np.maximum(seen.sum(-1, keepdims=True), 1) + np.zeros((2, T, S))
        y, back = attention(q, k, v, mask, segments, **options)
        _, _, dv, *_ = back(dy)
        for got in (y[:, 0, 0, :, :S], dv[:, 0, :, :T].swapaxes(-1, -2)):
            assert np.all(np.abs(got.astype("float64") - p) <= (U + 2.0 ** -20) * p)


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("options", [{}, {"scale": -1.0}, {"softcap": 1e9}])
def test_large_scores_give_finite_results(size, options):
    """Up to some 1e11: weights are at most 1 and add up to 1, so y is no larger than the largest value is.

    y is rounded as p and as a result, and a sum of 33 products over one of 33 weights.
    """
    q, k, v, dy = drawn(np.random.default_rng(4), 1, 1, 1, 33, 33, 64)
    q, k = ((size * x.astype("float32")).astype(BF16) for x in (q, k))
    results = list(map(wide, run([q, k, v], dy, options)))
    assert all(np.all(np.isfinite(x)) for x in results)
    assert np.abs(results[0]).max() <= (1 + U) ** 2 * (1 + gamma(37)) ** 2 * np.abs(wide(v)).max()


@pytest.mark.parametrize("on", ["cpu"] if backend.cpu else [])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 2, 300, 300, 64), (3, 1, 1, 300, 130, 48)])     # two for threads
def test_bits_do_not_depend_on_the_number_of_threads(shape, on):
    rng = np.random.default_rng(1)
    *inputs, dy = drawn(rng, *shape)
    before, results = backend.cpu.threads(), []
    try:
        for threads in (1, 2, 3):
            backend.cpu.set_threads(threads)
            results.append([x.tobytes() for x in run(inputs, dy, {"causal": True})])
    finally:
        backend.cpu.set_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_stays_where_it_belongs(which, bad):
    """Of a query or a key, in the y where the formula has it; never in another head, though K is not a whole tile."""
    *inputs, dy = drawn(np.random.default_rng(2), 2, 2, 1, 40, 40, 17)
    plain = run(inputs, dy, {"causal": True})
    inputs[which] = inputs[which].copy()
    inputs[which][(1, 0, 0, 35, 3) if which == 0 else (1, 0, 35, 3)] = bad
    results = run(inputs, dy, {"causal": True})
    if which < 2:
        with backend.use("numpy"), np.errstate(invalid="ignore"):
            expected, _ = attention(*map(wide, inputs), causal=True)
        np.testing.assert_array_equal(np.isfinite(wide(results[0])), np.isfinite(expected))
        assert results[0][1, 0, 0, :35].tobytes() == plain[0][1, 0, 0, :35].tobytes()
    for a, b in zip(results, plain, strict=True):
        for head in ((0, 0), (0, 1), (1, 1)):
            assert a[head].tobytes() == b[head].tobytes()
