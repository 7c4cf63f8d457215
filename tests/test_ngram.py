"""The n-gram model: its formula, a distribution in every context, and a known loss on a real text."""
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.text import ngram
from pyllama.text import tokens as token_ids
from pyllama.text.tokenizer import Tokenizer

SHAKESPEARE = Path(__file__).parents[2] / "shared/data/tinyshakespeare/input.txt"
V = 4
texts = st.lists(st.lists(st.integers(0, V - 1), max_size=30), min_size=1, max_size=4).filter(any)


def joined(documents):
    return token_ids.joined([np.array(ids, np.uint16) for ids in documents])


def zipfian(seed, size=3000, vocab_size=12):
    """A Markov chain whose n-grams are as unequally frequent as a text's, so that all counts of counts exist."""
    rng = np.random.default_rng(seed)
    chances = rng.permuted(np.tile(1 / np.arange(1, vocab_size + 1) ** 1.5, (vocab_size, 1)), axis=1)
    cumulative = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)
    ids = [0]
    for u in rng.random(size - 1):
        ids.append(min(int(np.searchsorted(cumulative[ids[-1]], u)), vocab_size - 1))
    return [ids[:size // 2], ids[size // 2:]]


def spelled_out(documents, order, vocab_size):
    """P(w, history) by the formulas over dictionaries of tuples."""
    text = [[vocab_size] * max(order - 1, 1) + list(ids) for ids in documents]
    pad = max(order - 1, 1)
    raw = [Counter(tuple(ids[i - n + 1:i + 1]) for ids in text for i in range(pad, len(ids)))
           for n in range(1, order + 1)]
    counts = [Counter(g[1:] for g in longer) for longer in raw[1:]] + [raw[-1]]
    found = []
    for c in counts:
        n1, n2, n3, n4 = (sum(k == count for k in c.values()) for count in (1, 2, 3, 4))
        d = (0.5, 1.0, 1.5)
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            d = estimated if min(estimated) >= 0 else d
        found.append(d)

    def probability(w, history):
        if history is None:
            return 1 / vocab_size
        c, d = counts[len(history)], found[len(history)]
        following = [k for g, k in c.items() if g[:-1] == history]
        lower = probability(w, history[1:] if history else None)
        if not following:
            return lower
        own = c[(*history, w)]
        freed = sum(d[min(k, 3) - 1] for k in following)
        return ((own - d[min(own, 3) - 1] if own else 0) + freed * lower) / sum(following)

    return probability, found


@given(documents=texts, order=st.integers(1, 5), context=st.lists(st.integers(0, V - 1), max_size=6))
def test_probabilities_sum_to_one_in_every_context(documents, order, context):
    """Seen or not.  V numbers, each made by at most 3 roundings an order."""
    p = ngram.fit(joined(documents), order, V).distribution(context)
    assert p.shape == (V,)
    assert p.min() > 0
    assert abs(p.sum() - 1) <= (3 * order + V) * np.finfo(float).eps


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(documents=texts, other=texts)
def test_the_model_is_its_formula(documents, other, order):
    model = ngram.fit(joined(documents), order, V)
    probability, _ = spelled_out(documents, order, V)
    got = model.log_probability(joined(other))
    padding = (V,) * (order - 1)
    histories = [(*padding, *ids[:i])[i:] for ids in other for i in range(len(ids))]
    want = [math.log(probability(w, h)) for w, h in zip((w for ids in other for w in ids), histories, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_the_model_is_its_formula_where_discounts_are_estimated(order):
    """Toy texts have too few counts; here every order has discounts of its own, none the fallback."""
    documents = zipfian(0)
    probability, found = spelled_out(documents, order, 12)
    assert ngram.FALLBACK not in found[1:]
    model = ngram.fit(joined(documents), order, 12)
    other = zipfian(1, 60)
    got = model.log_probability(joined(other))
    want = [math.log(probability(ids[i], ((12,) * (order - 1) + tuple(ids[:i]))[i:]))
            for ids in other for i in range(len(ids))]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    context = other[0][:7]
    np.testing.assert_allclose(model.distribution(context),
                               [probability(w, tuple(context[len(context) - order + 1:])) for w in range(12)],
                               rtol=1e-12)


@given(documents=texts, order=st.integers(1, 4), other=texts)
def test_two_ways_to_a_probability_agree(documents, order, other):
    model = ngram.fit(joined(documents), order, V)
    logs = [math.log(model.distribution(ids[:i])[ids[i]]) for ids in other for i in range(len(ids))]
    np.testing.assert_allclose(model.log_probability(joined(other)), logs, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(model.perplexity(joined(other)), math.exp(-sum(logs) / len(logs)), rtol=1e-12)


def test_documents_do_not_see_each_other():
    """0 1 and 2 3 are bigrams, 1 2 is none."""
    model = ngram.fit(joined([[0, 1], [2, 3]] * 20), 2, V)
    assert model.distribution([1])[2] == ngram.fit(joined([[2, 3], [0, 1]] * 20), 2, V).distribution([1])[2]
    assert model.distribution([0])[1] > 0.9
    assert model.distribution([1])[2] < 0.5


def test_a_discount_that_cannot_be_estimated_is_the_fallback():
    assert ngram.discounts(np.array([1, 1, 1, 2, 2, 3])) == ngram.FALLBACK           # no 4
    assert ngram.discounts(np.array([1, 2, *[3] * 9, 4])) == ngram.FALLBACK          # D2 = 2 - 9 would be below 0
    n1, n2, n3, n4 = 10, 4, 2, 1                                                     # Y = 10/18
    counts = np.repeat([1, 2, 3, 4, 9], [n1, n2, n3, n4, 3])
    np.testing.assert_allclose(ngram.discounts(counts), (10 / 18, 2 - 3 / 2 * 10 / 18, 3 - 4 / 2 * 10 / 18), rtol=1e-15)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(UserError, match=r"order is 0; it must be at least 1$"):
        ngram.fit(joined([[0]]), 0, V)
    with pytest.raises(UserError, match="there are no tokens"):
        ngram.fit(joined([[]]), 2, V)
    with pytest.raises(IndexError, match="token id 4 is outside the vocabulary of 4"):
        ngram.fit(joined([[4]]), 2, V)
    with pytest.raises(IndexError, match="token id 4 is outside the vocabulary of 4"):
        ngram.fit(joined([[0]]), 2, V).log_probability(joined([[4]]))


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason=f"{SHAKESPEARE} is not on this machine")
def test_shakespeare_takes_1_56_nats_a_character():
    """Nothing is drawn, so only the last digits may differ.  Raw counts in the lower orders make order 5 1.661, one
    discount for all counts 1.579, the fallback's discounts 1.563.
    """
    text = SHAKESPEARE.read_text()
    tokenizer = Tokenizer.characters(text)
    training, validation = token_ids.split(token_ids.joined([tokenizer.encode(text)]))
    got = [math.log(ngram.fit(training, order, tokenizer.vocab_size).perplexity(validation)) for order in (2, 5)]
    np.testing.assert_allclose(got, [2.4835, 1.5612], atol=1e-4)
