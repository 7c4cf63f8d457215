"""Laws of attention's optional inputs and options: masks of pairs, segments, a bias, a scale, a softcap."""
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from pyllama import backend
from pyllama.ops import attention
from tests.laws import close, law, same
from tests.test_laws_attention import alike, drawn, long, seeing, sees, small, some_times, times

some = st.booleans()
kinds = {"masked": st.sampled_from(["", "keys", "pairs"]), "packed": some}
scales = st.sampled_from([None, 1.0, 0.3, 2.0, -0.5, 0.0])
caps = st.sampled_from([None, 0.5, 3.0])
documents = st.lists(st.integers(1, 5), min_size=1, max_size=4)
long_documents = st.lists(st.sampled_from([1, 2, 5, 17, 40, 130]), min_size=1, max_size=4)
any_number = st.integers(-2 ** 40, 2 ** 40)                                         # of a document


def hiding(rng, B, T, S, masked, packed):
    """Random mask and segments, or None for each."""
    shape = {"": None, "keys": (B, S), "pairs": (B, T, S)}[masked]
    return {"mask": None if shape is None else rng.integers(2, size=shape),
            "segments": rng.integers(3, size=(B, S)) if packed else None}


def all_that_sees(B, T, S, mask, segments, causal, window):
    """[B T S], by the docstring, one by one."""
    seen = np.tile(sees(T, S, causal, window), (B, 1, 1))
    for b, t, s in np.ndindex(B, T, S):
        place = t + S - T
        if mask is not None:
            seen[b, t, s] &= mask[b, s] if mask.ndim == 2 else mask[b, t, s]
        if segments is not None:
            seen[b, t, s] &= place >= 0 and segments[b, place] == segments[b, s]
    return seen


def drawn_bias(rng, B, H, T, S, dtype="float64"):
    """Of any of the shapes that broadcast to [B H T S]."""
    return rng.standard_normal((rng.choice([1, B]), rng.choice([1, H]), T, S)).astype(dtype)


def gradients_alike(got, want, q, k, v, dy, bias=0.0):
    """Every gradient sums at most R T or S products p dy v k, p dy v q or p dy, each with the errors of p in `alike`;
    a scale of 2 doubles a score."""
    *_, R, T, K = q.shape
    S = k.shape[-2]
    q_, k_, v_, dy_ = (max(1, np.linalg.norm(x, axis=-1).max(initial=0)) for x in (q, k, v, dy))
    size = (1 + 2 * q_ * k_ + np.abs(bias).max(initial=0)) * 4 * q_ * k_ * v_ * dy_ * max(R * T, S)
    for a, b in zip(got, want, strict=True):
        close(a, b, 4 * (K + S + 8), size)


@law(attention, **small, **times, K=st.integers(1, 4), biased=some, scale=scales, softcap=caps, **kinds, **seeing)
def test_attention_with_everything_is_the_naive_formula(rng, B, G, R, T, S, K, biased, scale, softcap, masked, packed,
                                                        causal, window):
    """One query at a time; the cap comes before the bias; a query that sees no key gets 0."""
    q, k, v, _ = drawn(rng, B, G, R, T, S, K)
    hidden = hiding(rng, B, T, S, masked, packed)
    bias = drawn_bias(rng, B, G * R, T, S) if biased else None
    seen, y = all_that_sees(B, T, S, **hidden, causal=causal, window=window), np.zeros_like(q)
    full = np.zeros((B, G, R, T, S)) + (0 if bias is None else np.broadcast_to(bias, (B, G * R, T, S)).reshape(
        B, G, R, T, S))
    for b, g, r, t in np.ndindex(B, G, R, T):
        weights = {}
        for s in np.flatnonzero(seen[b, t]):
            score = sum(q[b, g, r, t] * k[b, g, s]) * (1 / math.sqrt(K) if scale is None else scale)
            score = score if softcap is None else softcap * math.tanh(score / softcap)
            weights[s] = math.exp(score + full[b, g, r, t, s])
        for s, weight in weights.items():
            y[b, g, r, t] += weight / sum(weights.values()) * v[b, g, s]
    got, _ = attention(q, k, v, **hidden, bias=bias, causal=causal, window=window, scale=scale, softcap=softcap)
    alike(got, y, 2 * math.sqrt(K) * q, k, v)


@law(attention, **small, T=long, S=long, t=st.integers(0, 10 ** 6), biased=some, **kinds, **seeing)
def test_what_mask_and_segments_hide_may_be_anything(rng, dtype, B, G, R, T, S, K, t, biased, masked, packed, causal,
                                                     window):
    """Keys, values and biases that query t does not see: not one bit of y_t changes, and it sends them exactly no
    gradient."""
    t %= T
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    bias = rng.standard_normal((B, G * R, T, S)).astype(dtype) if biased else None
    hidden = hiding(rng, B, T, S, masked, packed)
    unseen = ~all_that_sees(B, T, S, **hidden, causal=causal, window=window)                            # [B T S]
    of_t = np.broadcast_to(unseen[:, None, t], (B, G, S))
    dy[..., np.arange(T) != t, :] = 0
    y, back = attention(q, k, v, *hidden.values(), bias, causal=causal, window=window)
    _, dk, dv, _, _, dbias = back(dy)
    assert not dk[of_t].any()
    assert not dv[of_t].any()
    k[of_t], v[of_t] = 1e3 * rng.standard_normal((2, of_t.sum(), K))
    if biased:
        assert not dbias[np.broadcast_to(unseen[:, None], bias.shape)].any()
        assert not dbias[:, :, np.arange(T) != t].any()
        bias[np.broadcast_to(unseen[:, None], bias.shape)] = 1e3
    same(attention(q, k, v, *hidden.values(), bias, causal=causal, window=window)[0][..., t, :], y[..., t, :])


@law(attention, **small, lengths=st.one_of(documents, long_documents), causal=some, scale=scales, softcap=caps,
     number=any_number)
def test_packed_documents_are_separate_calls(rng, B, G, R, K, lengths, causal, scale, softcap, number):
    """In the output and in every gradient.  Which numbers the documents have does not matter."""
    T = sum(lengths)
    options = dict(causal=causal, scale=scale, softcap=softcap)
    q, k, v, dy = drawn(rng, B, G, R, T, T, K)
    numbers = number + rng.permutation(len(lengths))
    y, back = attention(q, k, v, segments=np.tile(np.repeat(numbers, lengths), (B, 1)), **options)
    grads, start = back(dy)[:3], 0
    for length in lengths:
        here = np.s_[..., start:start + length, :]
        z, back_alone = attention(q[here], k[here], v[here], **options)
        alike(y[here], z, 2 * math.sqrt(K) * q, k, v)
        gradients_alike([d[here] for d in grads], back_alone(dy[here]), q, k, v, dy)
        start += length


@law(attention, **small, **times, K=st.integers(1, 4), **seeing)
def test_a_mask_is_a_bias_of_minus_infinity(rng, dtype, B, G, R, T, S, K, causal, window):
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    mask = rng.integers(2, size=(B, T, S))
    bias = np.where(mask == 1, 0, -np.inf)[:, None].astype(dtype)
    y, back = attention(q, k, v, mask, causal=causal, window=window)
    z, bias_back = attention(q, k, v, bias=bias, causal=causal, window=window)
    alike(z, y, q, k, v)
    *grads, _, _, dbias = bias_back(dy)
    gradients_alike(grads, back(dy)[:3], q, k, v, dy)
    assert not dbias[mask[:, None] == 0].any()


@law(attention, **small, T=long, S=long, **seeing)
def test_a_mask_of_keys_is_one_of_pairs_for_all_queries(rng, dtype, B, G, R, T, S, K, causal, window):
    """Whatever integers stand for what is seen."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    mask = rng.integers(2, size=(B, S))
    pairs = np.repeat(mask[:, None], T, axis=1)
    y, back = attention(q, k, v, mask == 1, causal=causal, window=window)
    z, pairs_back = attention(q, k, v, -256 * pairs, causal=causal, window=window)
    alike(z, y, q, k, v)
    gradients_alike(pairs_back(dy)[:3], back(dy)[:3], q, k, v, dy)


@law(attention, **small, T=long, S=long, scale=scales, softcap=caps, **kinds, **seeing)
def test_the_gradient_of_a_bias_that_is_shared_is_the_sum(rng, B, G, R, T, S, scale, softcap, masked, packed, causal,
                                                          window):
    """And that of one row of scores sums to 0, because p does not change if all of them grow alike."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, 3)
    options = dict(**hiding(rng, B, T, S, masked, packed), causal=causal, window=window, scale=scale, softcap=softcap)
    bias = drawn_bias(rng, B, G * R, T, S)
    y, back = attention(q, k, v, bias=bias, **options)
    z, full_back = attention(q, k, v, bias=np.broadcast_to(bias, (B, G * R, T, S)), **options)
    alike(y, z, 4 * q, k, v)
    (*grads, dbias), (*want, full) = ([d for d in f(dy) if d is not None] for f in (back, full_back))
    shared = tuple(axis for axis in (0, 1) if bias.shape[axis] == 1)
    gradients_alike([*grads, dbias], [*want, full.sum(axis=shared, keepdims=True)], q, k, v, B * G * R * dy, bias)
    gradients_alike([full.sum(axis=-1)], [np.zeros((B, G * R, T))], q, k, v, dy, bias)


@law(attention, **small, **some_times, causal=some)
def test_a_bias_that_is_linear_in_the_distance_may_count_from_anywhere(rng, B, G, R, T, S, K, causal):
    """ALiBi's slope times t' - s and the slope times -s differ by what is the same for all keys."""
    q, k, v, _ = drawn(rng, B, G, R, T, S, K)
    slopes = 2.0 ** (-8 * np.arange(1, G * R + 1) / (G * R))[:, None, None]
    place, s = np.arange(S - T, S)[:, None], np.arange(S)
    near, _ = attention(q, k, v, bias=(slopes * (s - place))[None], causal=causal)
    far, _ = attention(q, k, v, bias=(slopes * np.broadcast_to(s, (T, S)))[None], causal=causal)
    alike(near, far, (1 + 8 * math.sqrt(K)) * np.sign(q) + q, k, v)


@law(attention, **small, T=long, S=long, scale=scales)
def test_a_scale_is_a_factor_of_the_queries(rng, B, G, R, T, S, K, scale):
    q, k, v, dy = drawn(rng, B, G, R, T, S, K)
    factor = 1 if scale is None else scale * math.sqrt(K)
    y, back = attention(q, k, v, scale=scale)
    z, plain_back = attention(factor * q, k, v)
    alike(y, z, factor * q, k, v)
    dq, *others = plain_back(dy)
    gradients_alike(back(dy), [factor * dq, *others], (1 + factor) * q, k, v, dy)


@law(attention, **small, T=long, S=long, **seeing)
def test_a_very_high_softcap_changes_nothing(rng, B, G, R, T, S, K, causal, window):
    """tanh x = x - x³/3 + ...: for scores below 1000 and c = 1e13 the second term is below a rounding."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, K)
    y, back = attention(q, k, v, causal=causal, window=window, softcap=1e13)
    z, plain_back = attention(q, k, v, causal=causal, window=window)
    alike(y, z, q, k, v)
    gradients_alike(back(dy), plain_back(dy), q, k, v, dy)


@law(attention, **small, **some_times, softcap=st.sampled_from([0.5, 3.0]))
def test_a_softcap_bounds_the_scores(rng, dtype, B, G, R, T, S, K, softcap):
    """Scores of any size are in -c ... c, so no weight is below e^(-2c) / S; and a score at the cap passes almost no
    gradient on."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    v = np.zeros_like(v)
    v[..., 0, 0] = 1
    q, k = (1e3 * np.sign(x) for x in (q, k))
    y, back = attention(q, k, v, softcap=softcap)
    odd = K % 2                                             # then no score is 0, and all are at the cap
    assert (y[..., 0] > math.exp(-2 * softcap) / S * (1 - 1e-3)).all()
    dq, dk, _ = back(dy)
    assert not odd or not (dq.any() or dk.any())


@law(attention, **small, T=st.integers(1, 6), biased=some, scale=scales, softcap=caps, **kinds, window=seeing["window"])
def test_one_query_with_everything_is_the_last_row_of_all(rng, B, G, R, T, K, biased, scale, softcap, masked, packed,
                                                          window):
    """Decoding after a cache."""
    q, k, v, dy = drawn(rng, B, G, R, T, T, K)
    hidden = hiding(rng, B, T, T, masked, packed)
    bias = drawn_bias(rng, B, G * R, T, T) if biased else None
    options = dict(causal=True, window=window, scale=scale, softcap=softcap)
    whole, back = attention(q, k, v, **hidden, bias=bias, **options)
    if masked == "pairs":
        hidden["mask"] = hidden["mask"][:, -1:]
    of_last = None if bias is None else bias[:, :, -1:]
    last, last_back = attention(q[..., -1:, :], k, v, **hidden, bias=of_last, **options)
    alike(last, whole[..., -1:, :], 2 * math.sqrt(K) * q, k, v)
    dy[..., :-1, :] = 0
    dq, *want = [d for d in back(dy) if d is not None]
    want[2:] = [d[:, :, -1:] for d in want[2:]]
    gradients_alike([d for d in last_back(dy[..., -1:, :]) if d is not None], [dq[..., -1:, :], *want], q, k, v,
                    B * G * R * dy, 0 if bias is None else bias)


@law(attention, **small, T=st.integers(1, 6), S=st.integers(0, 6), biased=some)
def test_a_query_before_the_first_key_has_no_segment(rng, dtype, B, G, R, T, S, K, biased):
    """It sees no key, though nothing else hides one."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    bias = drawn_bias(rng, B, G * R, T, S, dtype) if biased else None
    blind = np.arange(T) < T - S
    dy[..., ~blind, :] = 0
    y, back = attention(q, k, v, segments=np.ones((B, S), int), bias=bias)
    assert not y[..., blind, :].any()
    for gradient in back(dy):
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("softcap", [0, -1.0, math.nan])
@pytest.mark.parametrize("kernels", ["numpy", "cpu"])
def test_a_softcap_that_is_not_positive_is_refused(kernels, softcap):
    """A kernel that took 0 for none would differ from the reference, which divides by it."""
    q, k, v = np.ones((1, 1, 1, 2, 3)), np.ones((1, 1, 2, 3)), np.ones((1, 1, 2, 3))
    with backend.use(kernels), pytest.raises(ValueError, match="it must be positive, or None"):
        attention(q, k, v, softcap=softcap)
