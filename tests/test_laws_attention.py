"""Laws of attention and of the rotary positions that feed it."""
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from pyllama import backend
from pyllama.errors import UserError
from pyllama.ops import attention, rope
from tests.laws import close, law, same

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}
factors = st.sampled_from([1.0, 2.0, 3.0, 8.0])
turns = {                                                  # every way to turn: what rope's options are drawn from
    "interleaved": st.booleans(), "base": st.sampled_from([2.0, 500.0, 1e4, 5e5]),
    "scaling": st.one_of(st.none(), st.just(LLAMA3), st.just({"rope_type": "default"}), st.fixed_dictionaries(
        {"rope_type": st.sampled_from(["linear", "ntk"]), "factor": factors})),
}
places = st.integers(0, 200)


# --- rope -------------------------------------------------------------------------------------------------------------

def pairs(x, interleaved):
    """[... K] -> [... 2 P]: the two numbers of each pair."""
    P = x.shape[-1] // 2
    return x.reshape(*x.shape[:-1], P, 2).swapaxes(-1, -2) if interleaved else x.reshape(*x.shape[:-1], 2, P)


def angles(P, **options):
    """By how much each of P pairs is turned from one position to the next: read off from what happens to (1, 0)."""
    y, _ = rope(np.repeat([1.0, 0.0], P)[None], start=1, **options)
    return np.arctan2(y[0, P:], y[0, :P])


@law(rope, start=places, **turns)
def test_rope_keeps_the_length_of_every_pair(rng, B, T, K, start, interleaved, base, scaling):
    x = rng.standard_normal((B, T, 2 * K))
    y, _ = rope(x, start=start, interleaved=interleaved, base=base, scaling=scaling)
    before, after = (np.sum(pairs(a, interleaved) ** 2, axis=-2) for a in (x, y))
    close(after, before, 16, before)


@law(rope, t=places, s=places, further=places, **turns)
def test_rope_makes_scores_depend_on_the_distance_alone(rng, K, t, s, further, interleaved, base, scaling):
    """<R_t q, R_s k> = <R_t+d q, R_s+d k>.  An angle below 400 is off by one rounding of 400, the product by |q| |k|
    times that; four angles take part."""
    q, k = rng.standard_normal((2, 1, 2 * K))

    def score(t, s):
        (a, _), (b, _) = (rope(x, start=at, interleaved=interleaved, base=base, scaling=scaling)
                          for x, at in ((q, t), (k, s)))
        return np.vdot(a, b)

    close(score(t + further, s + further), score(t, s), 4 * 400 + 2 * K + 16, np.linalg.norm(q) * np.linalg.norm(k))


@law(rope, start=places, **turns)
def test_rope_counts_positions_from_start(rng, dtype, T, K, start, interleaved, base, scaling):
    """A suffix that starts at `start` is what it was in the whole, bit for bit; so is its gradient."""
    x, dy = rng.standard_normal((2, start + T, 2 * K)).astype(dtype)
    options = dict(interleaved=interleaved, base=base, scaling=scaling)
    (whole, back), (suffix, suffix_back) = rope(x, **options), rope(x[start:], start=start, **options)
    same(suffix, whole[start:])
    same(suffix_back(dy[start:])[0], back(dy)[0][start:])


@law(rope, **turns)
def test_rope_leaves_position_0_alone(rng, dtype, B, K, interleaved, base, scaling):
    x = rng.standard_normal((B, 1, 2 * K)).astype(dtype)
    same(rope(x, interleaved=interleaved, base=base, scaling=scaling)[0], x)


@law(rope, interleaved=st.booleans(), wider=st.integers(0, 2), turned=st.booleans())
def test_rope_takes_heads_as_they_lie(rng, dtype, B, T, G, K, interleaved, wider, turned):
    """As a model splits them, [B T G 2K] seen as [B G T 2K], side by side with other columns, forwards or backwards."""
    x, dy = rng.standard_normal((2, B, T, G + wider, 2 * K)).astype(dtype)[:, :, :, wider:].swapaxes(2, 3)
    x, dy = (a[:, ::-1] if turned else a for a in (x, dy))
    y, back = rope(x, interleaved=interleaved)
    z, back_too = rope(np.array(x, order="C"), interleaved=interleaved)
    same(y, z)
    same(back(dy)[0], back_too(np.array(dy, order="C"))[0])


def test_rope_keeps_the_order_of_memory():
    """The heads of its results are merged without a copy."""
    x = np.ones((2, 5, 3, 8)).swapaxes(1, 2)
    for on in rope.backends():
        with backend.use(on):
            y, back = rope(x)
            for a in (y, *back(x)):
                assert np.shares_memory(a, a.swapaxes(1, 2).reshape(2, 5, 24))


def test_rope_makes_its_tables_once():
    """They are shared, so that nobody may write to them."""
    for on in rope.backends():
        for dtype in ("float32", "float64"):
            forward = rope.forward if on == "numpy" else backend.cpu.rope
            saved, again, other = (forward(np.ones((5, 8), dtype), start=start)[1] for start in (3, 3, 4))
            for a, b, c in zip(saved, again, other, strict=True):
                assert a is b
                assert a.dtype == dtype
                assert not a.flags.writeable
                assert not np.array_equal(a, c)


@law(rope, start=places)
def test_rope_layouts_differ_by_a_permutation(rng, B, T, K, start):
    """The halves 0 1 2 | 3 4 5 stand as neighbors in the order 0 3 1 4 2 5."""
    x, order = rng.standard_normal((B, T, 2 * K)), np.arange(2 * K).reshape(2, K).T.ravel()
    halves, _ = rope(x, start=start)
    neighbors, _ = rope(x[..., order], start=start, interleaved=True)
    lengths = np.linalg.norm(pairs(x, interleaved=False), axis=-2)
    close(neighbors, halves[..., order], 8, np.repeat(lengths, 2, axis=-1))


@law(rope, P=st.sampled_from([1, 2, 5, 32]), base=st.sampled_from([2, 1e4, 5e5]), factor=factors)
def test_rope_frequencies(P, base, factor):
    """base^(-k/P); linear scaling divides all by factor; ntk the slowest by factor and the fastest by one."""
    plain = np.array([1 / base ** (k / P) for k in range(P)])
    close(angles(P, base=base), plain, 8, plain)
    for kind in ("rope_type", "type"):                                              # Hugging Face's key, and its older
        close(angles(P, base=base, scaling={kind: "linear", "factor": factor}), plain / factor, 8, plain)
    ntk = angles(P, base=base, scaling={"rope_type": "ntk", "factor": factor})
    close(ntk[0], 1.0, 8)
    if P > 1:
        close(ntk[-1], plain[-1] / factor, 16, plain[-1])
        assert np.all(np.diff(ntk / plain) <= 1e-14)                                # the slower, the more stretched


@law(rope, P=st.sampled_from([1, 2, 5, 32]), base=st.sampled_from([1e4, 5e5]), factor=factors,
     old_context=st.sampled_from([64, 128, 8192]), low=st.sampled_from([1.0, 2.0]), high=st.sampled_from([4.0, 8.0]))
def test_rope_llama3_frequencies(P, base, factor, old_context, low, high):
    """The rule of Llama 3.1, a frequency at a time: short waves stay, long ones are stretched, a blend between."""
    expected, kinds = [], set()
    for k in range(P):
        frequency = base ** (-k / P)
        wavelength = 2 * math.pi / frequency
        if wavelength < old_context / high:
            kinds.add("stays")
        elif wavelength > old_context / low:
            kinds.add("stretched")
            frequency /= factor
        else:
            kinds.add("blended")
            smooth = (old_context / wavelength - low) / (high - low)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
        expected.append(frequency)
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
               "original_max_position_embeddings": old_context}
    close(angles(P, base=base, scaling=scaling), np.array(expected), 32, np.array(expected))
    assert P < 32 or kinds == {"stays", "stretched", "blended"}


@pytest.mark.parametrize("on", rope.backends())
@pytest.mark.parametrize("kind", ["su", "dynamic", "longrope", ""])
def test_rope_names_the_scalings_it_knows(on, kind):
    message = f"'{kind}' is not supported; use default, linear, ntk, llama3 or yarn"
    with backend.use(on), pytest.raises(UserError, match=message):
        rope(np.ones((3, 4)), scaling={"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize("on", rope.backends())
@pytest.mark.parametrize(("kind", "missing"), [("linear", "factor"), ("ntk", "factor"), ("llama3", "high_freq_factor")])
def test_rope_names_what_a_scaling_lacks(on, kind, missing):
    scaling = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
    del scaling[missing]
    with backend.use(on), pytest.raises(UserError, match=f"'{kind}' lacks {missing}; it needs factor"):
        rope(np.ones((3, 4)), scaling=scaling)


# --- attention --------------------------------------------------------------------------------------------------------

seeing = {"causal": st.booleans(), "window": st.sampled_from([None, 1, 2, 5])}
small = {axis: st.integers(1, 2) for axis in "BGR"}
times = {axis: st.integers(0, 6) for axis in "TS"}
some_times = {axis: st.integers(1, 6) for axis in "TS"}
long = st.one_of(st.integers(1, 6), st.sampled_from([17, 33, 70, 130]))             # across the blocks of a kernel


def drawn(rng, B, G, R, T, S, K, dtype="float64"):
    """q, k, v, dy"""
    shapes = (B, G, R, T, K), (B, G, S, K), (B, G, S, K), (B, G, R, T, K)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def sees(T, S, causal, window):
    """Which of S keys each of T queries sees, the last standing at the last; by the docstring, one by one."""
    seen = np.zeros((T, S), bool)
    for t, s in np.ndindex(T, S):
        ahead = s - (t + S - T)
        seen[t, s] = (ahead <= 0 or not causal) and (window is None or abs(ahead) < window)
    return seen


def alike(got, want, q, k, v):
    """Equal but for rounding.  A score is off by K roundings of A = max |q| |k| / √K, the log-sum-exp by A and S more;
    an error of a score is a relative error of p, and y is a mean of v with the weights p."""
    K, S = k.shape[-1], k.shape[-2]
    A = np.linalg.norm(q, axis=-1).max(initial=0) * np.linalg.norm(k, axis=-1).max(initial=0) / math.sqrt(K)
    close(got, want, 2 * (K + S + 8), (1 + A) * np.abs(v).max(initial=0))


@law(attention, **small, **times, K=st.integers(1, 4), masked=st.booleans(), **seeing)
def test_attention_is_the_naive_formula(rng, B, G, R, T, S, K, masked, causal, window):
    """One query at a time; a query that sees no key gets 0."""
    q, k, v, _ = drawn(rng, B, G, R, T, S, K)
    mask = rng.integers(2, size=(B, S)) if masked else np.ones((B, S), int)
    y = np.zeros_like(q)
    for b, g, r, t in np.ndindex(B, G, R, T):
        seen = np.flatnonzero(sees(T, S, causal, window)[t] & (mask[b] == 1))
        weights = [math.exp(sum(q[b, g, r, t] * k[b, g, s]) / math.sqrt(K)) for s in seen]
        for s, weight in zip(seen, weights, strict=True):
            y[b, g, r, t] += weight / sum(weights) * v[b, g, s]
    got, _ = attention(q, k, v, *([mask] if masked else []), causal=causal, window=window)
    alike(got, y, q, k, v)


@law(attention, **small, T=long, S=long, t=st.integers(0, 10 ** 6), masked=st.booleans(), **seeing)
def test_attention_never_looks_where_it_must_not(rng, dtype, B, G, R, T, S, K, t, masked, causal, window):
    """What query t does not see -- the future, what lies beyond the window, padding -- may be anything: not one bit of
    y_t changes, and y_t sends it exactly no gradient."""
    t %= T
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    mask = rng.integers(2, size=(B, S)) if masked else np.ones((B, S), int)
    unseen = ~(sees(T, S, causal, window)[t] & (mask == 1))                                                   # [B S]
    hidden = np.broadcast_to(unseen[:, None], (B, G, S))
    dy[..., np.arange(T) != t, :] = 0
    y, back = attention(q, k, v, mask, causal=causal, window=window)
    _, dk, dv, _ = back(dy)
    assert not dk[hidden].any()
    assert not dv[hidden].any()
    k[hidden], v[hidden] = 1e3 * rng.standard_normal((2, hidden.sum(), K))
    same(attention(q, k, v, mask, causal=causal, window=window)[0][..., t, :], y[..., t, :])


@law(attention, **small, n=long, further=long)
def test_a_causal_prefix_does_not_know_what_follows(rng, dtype, B, G, R, n, K, further):
    q, k, v, _ = drawn(rng, B, G, R, n + further, n + further, K, dtype)
    whole, _ = attention(q, k, v, causal=True)
    prefix, _ = attention(q[..., :n, :], k[..., :n, :], v[..., :n, :], causal=True)
    alike(whole[..., :n, :], prefix, q, k, v)


@law(attention, **small, **some_times, **seeing)
def test_attention_stays_in_the_hull_of_the_values_it_sees(rng, B, G, R, T, S, K, causal, window):
    q, k, v, _ = drawn(rng, B, G, R, T, S, K)
    y, _ = attention(q, k, v, causal=causal, window=window)
    for t, seen in enumerate(sees(T, S, causal, window)):
        if seen.any():
            low, high = v[:, :, None, seen].min(axis=-2), v[:, :, None, seen].max(axis=-2)       # [B G 1 K]
            alike(np.maximum(np.maximum(low - y[..., t, :], y[..., t, :] - high), 0), 0 * y[..., t, :], q, k, v)


@law(attention, **small, **some_times)
def test_attention_does_not_care_about_the_order_of_keys(rng, B, G, R, T, S, K):
    q, k, v, _ = drawn(rng, B, G, R, T, S, K)
    order = rng.permutation(S)
    alike(attention(q, k[:, :, order], v[:, :, order])[0], attention(q, k, v)[0], q, k, v)


@law(attention, **small, **times)
def test_a_padding_mask_is_the_keys_left_out(rng, B, G, R, T, S, K):
    """Any pattern: in the output, and in the gradients of what is left."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, K)
    kept = rng.random(S) < 0.6
    y, back = attention(q, k, v, np.tile(kept, (B, 1)))
    z, back_without = attention(q, k[:, :, kept], v[:, :, kept])
    alike(y, z, q, k, v)
    dq, dk, dv, _ = back(dy)
    # Every gradient sums at most R T or S products p dy v k, p dy v q or p dy, each with the errors of p in `alike`.
    q_, k_, v_, dy_ = (max(1, np.linalg.norm(x, axis=-1).max(initial=0)) for x in (q, k, v, dy))
    size = (1 + q_ * k_) * q_ * k_ * v_ * dy_ * max(R * T, S)
    for got, want in zip((dq, dk[:, :, kept], dv[:, :, kept]), back_without(dy), strict=True):
        close(got, want, 4 * (K + S + 8), size)


@law(attention, **small, T=st.integers(1, 6), window=seeing["window"], padding=st.integers(0, 5))
def test_padding_on_the_left_is_a_shorter_causal_sequence(rng, B, G, R, T, K, window, padding):
    q, k, v, _ = drawn(rng, B, G, R, T, T, K)
    p = min(padding, T - 1)
    y, _ = attention(q, k, v, np.tile(np.arange(T) >= p, (B, 1)), causal=True, window=window)
    z, _ = attention(q[..., p:, :], k[..., p:, :], v[..., p:, :], causal=True, window=window)
    alike(y[..., p:, :], z, q, k, v)


@law(attention, **small, T=st.integers(1, 6), S=st.integers(0, 6), masked=st.booleans(), **seeing)
def test_a_query_that_sees_no_key_attends_to_nothing(rng, dtype, B, G, R, T, S, K, masked, causal, window):
    """y = 0 and zero gradients, exactly: with T > S, with all keys masked and with no keys at all."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    mask = np.zeros((B, S), int) if masked else np.ones((B, S), int)
    blind = np.full(T, True) if masked else ~sees(T, S, causal, window).any(axis=-1)
    dy[..., ~blind, :] = 0
    y, back = attention(q, k, v, mask, causal=causal, window=window)
    assert not y[..., blind, :].any()
    assert np.isfinite(y).all()
    for gradient in back(dy)[:3]:
        assert not gradient.any()


@law(attention, **small, T=st.integers(1, 6), window=seeing["window"])
def test_one_query_after_a_cache_is_the_last_row_of_all(rng, B, G, R, T, K, window):
    q, k, v, _ = drawn(rng, B, G, R, T, T, K)
    last, _ = attention(q[..., -1:, :], k, v, causal=True, window=window)
    alike(last, attention(q, k, v, causal=True, window=window)[0][..., -1:, :], q, k, v)


@law(attention, **small, **times, causal=seeing["causal"], further=st.integers(0, 2))
def test_the_narrowest_and_the_widest_window(rng, dtype, B, G, R, T, S, K, causal, further):
    """window = 1 is each position's own value, exactly; one no smaller than T and S leaves nothing out."""
    q, k, v, _ = drawn(rng, B, G, R, S, S, K, dtype)
    same(attention(q, k, v, causal=causal, window=1)[0], np.broadcast_to(v[:, :, None], q.shape))
    q, k, v, _ = drawn(rng, B, G, R, T, S, K, dtype)
    wide = max(T, S, 1) + further
    same(attention(q, k, v, causal=causal, window=wide)[0], attention(q, k, v, causal=causal)[0])


@law(attention, **some_times, **seeing)
def test_each_query_head_uses_the_keys_of_its_own_group(rng, B, G, R, T, S, K, causal, window):
    """R heads that share keys are R calls; groups in another order are outputs in that order."""
    q, k, v, _ = drawn(rng, B, G, R, T, S, K)
    y, _ = attention(q, k, v, causal=causal, window=window)
    for r in range(R):
        alike(y[:, :, r:r + 1], attention(q[:, :, r:r + 1], k, v, causal=causal, window=window)[0], q, k, v)
    order = rng.permutation(G)
    alike(attention(q[:, order], k[:, order], v[:, order], causal=causal, window=window)[0], y[:, order], q, k, v)


@law(attention, **some_times)
def test_scores_are_divided_by_the_root_of_the_head_width(rng, T, S, K):
    """Three more widths of zeros make a head four times as wide and halve its scores; q twice as large doubles them."""
    q, k, v, _ = drawn(rng, 1, 1, 1, T, S, K)
    wide, key, value = (np.concatenate([x, *[np.zeros_like(x)] * 3], axis=-1) for x in (2 * q, k, v))
    alike(attention(wide, key, value)[0][..., :K], attention(q, k, v)[0], 2 * q, k, v)


@law(attention, **small, **some_times, causal=seeing["causal"])
def test_large_scores_stay_finite(rng, dtype, B, G, R, T, S, K, causal):
    """Scores of 1e4 and more, whose exponentials overflow: y is within the values, and the gradients are numbers."""
    q, k, v, dy = drawn(rng, B, G, R, T, S, K, dtype)
    y, back = attention(100 * q, 100 * k, v, causal=causal)
    alike(np.maximum(np.abs(y) - np.abs(v).max(), 0), 0 * y, 100 * q, 100 * k, v)
    assert all(np.isfinite(gradient).all() for gradient in back(dy))
