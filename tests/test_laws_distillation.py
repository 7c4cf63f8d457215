"""What a gradient test cannot see: properties of the divergence, of its temperature, and of the best words."""
import numpy as np
import pytest

from pyllama.ops import (
    attention_divergence,
    cosine_distance,
    cross_entropy,
    kl_divergence,
    softmax,
    top_scores,
)

RNG = np.random.default_rng(0)
EPS = np.finfo("float64").eps


def drawn(N=5, V=7, scale=2.0):
    """(a, b, t): the scores of two models, and targets."""
    return scale * RNG.standard_normal((N, V)), scale * RNG.standard_normal((N, V)), RNG.integers(0, V, N)


def test_the_divergence_of_a_model_and_itself_is_0_and_so_is_its_gradient():
    a, _, t = drawn()
    loss, back = kl_divergence(a, a + RNG.standard_normal((5, 1)), t, temperature=3.0)
    assert abs(loss) < 50 * EPS
    for gradient in back(1.0)[:2]:
        assert np.abs(gradient).max() < 50 * EPS


def test_with_a_teacher_that_is_sure_the_divergence_is_the_cross_entropy():
    """A word 100 above the others has their probabilities below exp(-100) V, which is less than eps."""
    _, b, t = drawn()
    a = np.where(np.arange(7) == t[:, None], 100.0, 0.0)
    loss, back = kl_divergence(a, b, t)
    expected, expected_back = cross_entropy(b, t)
    assert loss == pytest.approx(expected, rel=100 * EPS)
    np.testing.assert_allclose(back(1.0)[1], expected_back(1.0)[0], atol=100 * EPS)


@pytest.mark.parametrize("T", [50.0, 500.0])
def test_at_high_temperatures_the_gradient_is_the_difference_of_centered_scores(T):
    """T (q - p): with |u| <= M/T for u = b/T and its mean, exp(u) is 1 + u + r, |r| <= (M/T)², if M/T <= 1.

    So q differs from (1 + u - mean u)/V by at most 4 (M/T)²/V, p as well, and T (q - p) from its limit by 8 M²/(T V).
    """
    a, b, t = drawn(N=3)
    t[0] = -100
    M = max(np.abs(a).max(), np.abs(b).max())
    gradient = kl_divergence(a, b, t, temperature=T)[1](1.0)[1]
    limit = (b - b.mean(axis=1, keepdims=True) - a + a.mean(axis=1, keepdims=True)) / 7 / 2
    limit[0] = 0
    assert np.abs(gradient - limit).max() <= 8 * M ** 2 / (T * 7) / 2
    assert np.abs(limit).max() > 0.01                       # without T² it would be 1/T² of this


def test_the_rows_that_count_are_those_of_cross_entropy():
    a, b, t = drawn(N=6)
    t[[1, 4]] = -100
    kept = t != -100
    for count in (None, 9):
        whole, _ = kl_divergence(a, b, t, count=count)
        parts, _ = kl_divergence(a[kept], b[kept], t[kept], count=count)
        assert whole == pytest.approx(parts, rel=20 * EPS)
    nothing, back = kl_divergence(a, b, np.full(6, -100))
    assert nothing == 0
    assert not back(1.0)[1].any()


def merged(z, i, T):
    (y, r), _ = top_scores(z, i, temperature=T)
    return np.concatenate([y, r[:, None]], axis=1)


def test_the_best_words_and_the_sum_of_the_others_have_the_probabilities_of_all():
    a, _, _ = drawn()
    i = np.argsort(-a, axis=1)[:, :3]
    p, _ = softmax(a / 2)
    best = np.take_along_axis(p, i, axis=1)
    expected = np.concatenate([best, 1 - best.sum(axis=1, keepdims=True)], axis=1)
    np.testing.assert_allclose(softmax(merged(a, i, 2.0) / 2)[0], expected, rtol=1e-13)


def test_merging_words_lowers_the_divergence_unless_their_proportions_agree():
    a, b, t = drawn()
    i = np.argsort(-a, axis=1)[:, :3]
    whole, _ = kl_divergence(a, b, t, temperature=2.0)
    less, _ = kl_divergence(merged(a, i, 2.0), merged(b, i, 2.0), t, temperature=2.0)
    assert 0 < less < whole - 1e-3
    others = np.ones_like(a, bool)
    np.put_along_axis(others, i, False, axis=1)
    b = np.where(others, a + 0.7, b)                        # the same proportions among the others
    whole, _ = kl_divergence(a, b, t, temperature=2.0)
    same, _ = kl_divergence(merged(a, i, 2.0), merged(b, i, 2.0), t, temperature=2.0)
    assert same == pytest.approx(whole, rel=1e-13)


def test_a_row_has_no_others_if_all_words_are_chosen():
    (y, r), back = top_scores(np.array([[1.0, 2.0]]), np.array([[1, 0]]))
    assert (y.tolist(), r.tolist()) == ([[2.0, 1.0]], [0.0])
    assert back((np.array([[3.0, 4.0]]), np.array([5.0])))[0].tolist() == [[4.0, 3.0]]


def test_the_cosine_does_not_depend_on_lengths():
    x, y, _ = drawn(V=4)
    t = np.zeros(5, int)
    loss, back = cosine_distance(x, y, t)
    assert cosine_distance(3 * x, y / 7, t)[0] == pytest.approx(loss, rel=1e-9)
    np.testing.assert_allclose(np.sum(back(1.0)[0] * x, axis=1), 0, atol=1e-9)      # eps of 1e-12 in lengths of about 1
    assert cosine_distance(x, -x, t)[0] == pytest.approx(2, abs=1e-9)
    assert cosine_distance(np.zeros((1, 4)), y[:1], t[:1])[0] == 1


@pytest.mark.parametrize(("causal", "window", "count"), [(False, None, None), (True, None, 5), (False, 2, None),
                                                         (True, 2, None)])
def test_the_divergence_of_attention_is_the_mean_of_those_of_the_scores_of_keys_that_are_seen(causal, window, count):
    """Rows of at most 4 scores, each a sum of at most 5 products of numbers about 1: a few eps each."""
    B, H, T, S = 2, 2, 3, 4
    a, b, q, k = (RNG.standard_normal((B, H, length, width)) for length, width in ((T, 5), (S, 5), (T, 3), (S, 3)))
    target = np.array([[0, -100, 1], [1, 0, -100]])
    mask, segments = np.array([[1, 0, 1, 1], [1, 1, 1, 1]]), np.array([[0, 0, 0, 0], [0, 0, 1, 1]])
    loss, _ = attention_divergence(a, b, q, k, target, mask, segments, causal=causal, window=window, count=count)
    rows = []
    for n, h, t in np.ndindex(B, H, T):
        place = t + S - T
        seen = [s for s in range(S) if mask[n, s] and segments[n, s] == segments[n, place]
                and (s <= place or not causal) and (window is None or abs(s - place) < window)]
        if target[n, t] >= 0 and seen:
            scores = (b[n, h, seen] @ a[n, h, t] / 5 ** 0.5, k[n, h, seen] @ q[n, h, t] / 3 ** 0.5)
            rows.append(kl_divergence(*(z[None] for z in scores), np.array([0]))[0])
    assert loss == pytest.approx(sum(rows) / H / (count or 4), rel=100 * EPS)


def test_a_query_that_sees_no_key_adds_nothing_and_learns_nothing():
    a, b, q, k = RNG.standard_normal((4, 1, 2, 3, 4))
    mask = np.ones((1, 3, 3), int)
    mask[0, 1] = 0
    loss, back = attention_divergence(a, b, q, k, np.array([[0, 0, -100]]), mask)
    alone, _ = attention_divergence(a[:, :, :1], b, q[:, :, :1], k, np.array([[0]]), count=2)
    assert loss == pytest.approx(alone, rel=20 * EPS)
    da, _, dq, *_ = back(1.0)
    for gradient in da, dq:
        assert gradient[:, :, 0].all()
        assert not gradient[:, :, 1:].any()
