"""Sampling the next token, compared with a naive loop for each rule."""
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.generation import GenerationConfig
from pyllama.generation import choice as g
from pyllama.rng import generator

scores = st.lists(st.integers(-12, 12), min_size=1, max_size=12).map(lambda n: np.array(n) / 4)      # ties are likely
fraction = st.floats(0.01, 1)


def chances(z):
    e = [math.exp(s) for s in z]
    return [x / sum(e) for x in e]


def kept(z):
    return [i for i, s in enumerate(z) if s > -math.inf]


@given(z=scores, k=st.integers(1, 15))
def test_top_k_keeps_the_k_likeliest(z, k):
    lowest = sorted(z, reverse=True)[:k][-1]
    np.testing.assert_array_equal(g.top_k(z, k), [s if s >= lowest else -math.inf for s in z])


@given(z=scores, p=fraction)
def test_top_p_keeps_the_fewest_likeliest_that_reach_p(z, p):
    order, total, expected = sorted(range(len(z)), key=lambda i: (-z[i], i)), 0.0, []
    for i in order:
        expected.append(i)
        total += chances(z)[i]
        if total >= p * (1 + 1e-12):
            break
        if total >= p * (1 - 1e-12):                # p falls on the border itself: rounding decides, both are right
            return
    assert kept(g.top_p(z, p)) == sorted(expected)


@given(z=scores, p=fraction)
def test_min_p_keeps_what_is_likely_beside_the_likeliest(z, p):
    ratio = [x / max(chances(z)) for x in chances(z)]
    if all(abs(r - p) > 1e-12 for r in ratio):
        assert kept(g.min_p(z, p)) == [i for i, r in enumerate(ratio) if r > p]
    assert z.argmax() in kept(g.min_p(z, p))


@given(z=scores, low=fraction, high=fraction, k=st.integers(1, 12))
def test_a_tighter_rule_keeps_a_part_and_scores_never_change(z, low, high, k):
    low, high = sorted((low, high))
    for tight, loose in ((g.top_k(z, k), g.top_k(z, k + 1)), (g.top_p(z, low), g.top_p(z, high)),
                         (g.min_p(z, high), g.min_p(z, low))):
        assert set(kept(tight)) <= set(kept(loose))
        assert all(tight[i] == z[i] for i in kept(tight))
    for off in (g.top_k(z, 0), g.top_p(z, 1), g.min_p(z, 0), g.repetition_penalty(z, [0], 1)):
        np.testing.assert_array_equal(off, z)


@given(z=scores, t=st.floats(0.1, 5), k=st.integers(0, 12), p=fraction, m=st.floats(0, 1))
def test_what_is_drawn_from_is_the_rest_renormalized(z, t, k, p, m):
    got = g.distribution(z, GenerationConfig(do_sample=True, temperature=t, top_k=k, top_p=p, min_p=m))
    rest = kept(g.min_p(g.top_p(g.top_k((z - z.max()) / t, k), p), m))
    weight = [math.exp((z[i] - max(z)) / t) if i in rest else 0 for i in range(len(z))]
    np.testing.assert_allclose(got, np.array(weight) / sum(weight), rtol=1e-13)


@given(weights=st.lists(st.integers(0, 8), min_size=1, max_size=9).filter(any), u=st.floats(0, 1, exclude_max=True))
def test_a_draw_takes_the_id_whose_share_of_the_unit_holds_u(weights, u):
    """1e-15: nine terms below 1, each rounded by 1e-16, may move a border."""
    chosen = g.draw(np.array(weights) / sum(weights), u)
    assert weights[chosen] > 0
    below = sum(weights[:chosen]) / sum(weights)
    assert below - 1e-15 <= u <= below + weights[chosen] / sum(weights) + 1e-15


def test_scores_in_float32_are_summed_in_float64():
    """200,000 probabilities added in float32 are wrong by more than one of them is large."""
    z = np.random.default_rng(0).standard_normal(200_000).astype("float32")
    chosen = [[g.choose(a, [], GenerationConfig(do_sample=True), generator(seed)) for seed in range(20)]
              for a in (z, z.astype("float64"))]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("p", [[0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 0.1, 0.0, 0.7, 0.0]])
def test_a_draw_at_either_end_has_a_chance(p):
    assert g.draw(np.array(p), 0.0) == 1
    assert g.draw(np.array(p), np.nextafter(1, 0)) == 3


@given(z=scores, seen=st.lists(st.integers(0, 11), max_size=20), r=st.floats(0.2, 5))
def test_a_penalty_strikes_each_seen_id_once(z, seen, r):
    seen, before = [i for i in seen if i < len(z)], z.copy()
    expected = [(s / r if s > 0 else s * r) if i in seen else s for i, s in enumerate(z)]
    np.testing.assert_array_equal(g.repetition_penalty(z, seen, r), expected)
    np.testing.assert_array_equal(z, before)


@pytest.mark.parametrize(("chances", "settings", "left"), [
    ([0.5, 0.25, 0.25], dict(temperature=0.5, top_p=0.6), 1),                    # at 0.5: 4/6, 1/6, 1/6
    ([0.6, 0.3, 0.1], dict(temperature=0.5, min_p=0.4), 1),                      # 0.3/0.6 becomes 0.25
    ([0.4, 0.25, 0.2, 0.15], dict(top_k=2, top_p=0.6), 1),                       # 0.4 of 0.65 reaches 0.6
    ([0.5, 0.3, 0.1, 0.1], dict(top_p=0.6, min_p=0.5), 2),                       # 0.5 of 1.0 does not reach 0.6
], ids=["temperature, top_p", "temperature, min_p", "top_k, top_p", "top_p, min_p"])
def test_the_rules_are_applied_in_hugging_faces_order(chances, settings, left):
    p = g.distribution(np.log(chances), GenerationConfig(do_sample=True, **settings))
    assert np.count_nonzero(p) == left


def test_the_penalty_comes_first():
    settings = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=2.0)
    assert g.choose(np.array([1.0, 0.9, -3.0]), [0, 0], settings, generator(0)) == 1
    assert g.choose(np.array([1.0, 0.9, -3.0]), [0], replace(settings, do_sample=False, top_k=0), generator(0)) == 1


@pytest.mark.parametrize("settings", [
    dict(temperature=1e-310), dict(temperature=5e-324, top_k=2, top_p=1e-300, min_p=1e-300),
    dict(repetition_penalty=1e-310), dict(repetition_penalty=1e-310, temperature=1e-310),
])
def test_extreme_settings_choose_the_likeliest(settings):
    for likeliest in (1, 2):
        z = np.array([-2.0, 3.0, 3.0 - 1e-9, -40.0])
        z[likeliest] = 4.0
        assert g.choose(z, [likeliest], GenerationConfig(do_sample=True, **settings), generator(0)) == likeliest
    hot = GenerationConfig(do_sample=True, temperature=1e308)
    assert g.distribution(np.array([1.0, -1.0]), hot).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("settings", "message"), [
    (dict(max_new_tokens=-1), "max_new_tokens is -1; it must be at least 0"),
    (dict(temperature=-0.1), "temperature is -0.1; it must be at least 0"),
    (dict(temperature=math.nan), "temperature is nan"),
    (dict(do_sample=True, top_k=-1), "top_k is -1"),
    (dict(do_sample=True, top_p=0.0), "top_p is 0.0; it must be in 0 < p <= 1"),
    (dict(do_sample=True, top_p=1.1), "top_p is 1.1"),
    (dict(do_sample=True, min_p=-0.1), "min_p is -0.1"),
    (dict(repetition_penalty=0.0), "repetition_penalty is 0.0"),
    (dict(num_return_sequences=0), "num_return_sequences is 0"),
    (dict(stop_strings=5), "stop_strings is 5; it must be a sequence of non-empty"),
    (dict(stop_strings=""), "must be a sequence of non-empty"),
    (dict(stop_strings=[5]), "must be a sequence of non-empty"),
    (dict(stop_strings=("end", "")), "must be a sequence of non-empty"),
    (dict(seed=-1), "seed is -1"),
    (dict(temperature=0.8), "temperature has no effect without sampling; set do_sample"),
    (dict(top_k=5), "top_k has no effect"),
    (dict(top_p=0.9), "top_p has no effect"),
    (dict(min_p=0.1), "min_p has no effect"),
    (dict(num_return_sequences=2), "num_return_sequences is 2, which needs as many num_beams"),
    (dict(num_return_sequences=4, num_beams=3), "num_return_sequences is 4, which needs as many num_beams"),
    (dict(num_beams=2, do_sample=True), "num_beams above 1 searches and do_sample draws; set one of them, not both"),
    (dict(num_beams=0), "num_beams is 0; it must be at least 1"),
    (dict(length_penalty=11.0), "length_penalty is 11.0; it must be between -10 and 10"),
    (dict(early_stopping="always"), "early_stopping is 'always'; it must be False, True or \"never\""),
    (dict(num_return_sequences=2, do_sample=True, temperature=0.0), "and a temperature above 0"),
])
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        GenerationConfig(**settings)
