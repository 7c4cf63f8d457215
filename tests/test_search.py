"""Beam search compared with exhaustive search, and decoding token by token with decoding at once."""
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import beam
from pyllama.beam import SearchConfig, beam_search
from pyllama.errors import UserError
from pyllama.models import bart, transformer
from tests.test_models import BART, CASES, randomized

END, V = 0, 3


def toy(seed, count):
    """(step, log p of a target) of `count` sources whose next token depends on all of the target before it."""
    def table(source, ids):
        z = np.random.default_rng([seed, source, *ids]).normal(0, 2, V)
        return z - np.log(np.exp(z).sum())

    prefixes = {}

    def step(tokens, rows):
        before = [prefixes["now"][row] for row in rows] if prefixes else [(source,) for source in rows]
        prefixes["now"] = [(*ids, token) for ids, token in zip(before, tokens, strict=True)]
        return np.array([table(ids[0], ids[2:]) for ids in prefixes["now"]])

    return step, lambda source, ids: sum(table(source, ids[:i])[token] for i, token in enumerate(ids))


def targets(most):
    """Every target of up to `most` tokens: it ends with END, or has them all."""
    for length in range(1, most + 1):
        for body in product(range(1, V), repeat=length - 1):
            yield (*body, END)
    yield from product(range(1, V), repeat=most)


@given(seed=st.integers(0, 999), most=st.integers(1, 4), length_penalty=st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0]))
def test_with_enough_beams_it_is_an_exhaustive_search(seed, most, length_penalty):
    step, log_p = toy(seed, 2)
    found = beam_search(step, 9, [END], 2, SearchConfig(most, V ** most, length_penalty))
    for source, hypotheses in enumerate(found):
        every = sorted(((log_p(source, ids) / len(ids) ** length_penalty, list(ids)) for ids in targets(most)),
                       reverse=True)
        assert [h.ids for h in hypotheses] == [ids for _, ids in every]
        np.testing.assert_allclose([h.score for h in hypotheses], [score for score, _ in every], rtol=1e-12)
        assert all(h.finished is (h.ids[-1] == END) for h in hypotheses)


@given(seed=st.integers(0, 999), K=st.integers(1, 4), early_stopping=st.booleans())
def test_few_beams_find_scores_that_are_true_and_as_many_as_asked_for(seed, K, early_stopping):
    step, log_p = toy(seed, 3)
    for source, hypotheses in enumerate(beam_search(step, 9, [END], 3, SearchConfig(5, K, 1.0, early_stopping))):
        assert len({tuple(h.ids) for h in hypotheses}) == len(hypotheses) == K
        assert hypotheses == sorted(hypotheses, key=lambda h: -h.score)
        for h in hypotheses:
            np.testing.assert_allclose(h.score, log_p(source, h.ids) / len(h.ids), rtol=1e-12)


@given(seed=st.integers(0, 999))
def test_one_beam_is_the_chain_of_the_likeliest(seed):
    step, _ = toy(seed, 1)
    (found,), = beam_search(step, 9, [END], 1, SearchConfig(6))
    chain, again = [9], toy(seed, 1)[0]
    while len(chain) < 7 and chain[-1] != END:
        chain.append(int(again(chain[-1:], [0]).argmax()))
    assert found.ids == chain[1:]


SEQ2SEQ = [name for name, (_, c, *_) in CASES.items() if isinstance(c, transformer.TransformerConfig)
           and getattr(c, "head", "lm") == "lm"]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_token_by_token_and_padded_it_scores_as_at_once(name):
    """Caches of the target and of the memory, and rows that change places, change no more than rounding."""
    model, c, (source, target), _ = CASES[name]
    p, mask = randomized(model, c)["model"], np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    read = transformer.shifted(target, c)
    whole, _ = transformer.hidden(source, read, p, c, mask=mask)
    short, _ = transformer.hidden(source[:1, :4], read[:1], p, c)
    np.testing.assert_allclose(whole[:1], short, rtol=0, atol=1e-12)
    memory, _ = transformer.encode(source, p, c, mask=mask)
    caches, rows = transformer.remember(memory, p, c, room=1), np.array([0, 1])
    for t in range(read.shape[1]):
        y, _ = transformer.decode(read[rows, t:t + 1], memory[rows], p, c, mask=mask[rows], caches=caches)
        np.testing.assert_allclose(y[:, 0], whole[rows, t], rtol=0, atol=1e-12)
        rows = rows[::-1]
        caches = [(own.keep([1, 0]) or own, ((k[::-1], v[::-1]), back)) for own, ((k, v), back) in caches]


def test_beam_search_scores_agree_with_the_loss():
    """The score of a target is minus its mean cross-entropy; in a batch as alone."""
    c = bart.BartConfig(**BART)
    p, sources = randomized(bart, c), [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    settings = SearchConfig(num_beams=3, max_new_tokens=5)
    together = beam.targets(p, c, sources, settings)
    for source, found in zip(sources, together, strict=True):
        alone, = beam.targets(p, c, [source], settings)
        assert [h.ids for h in alone] == [h.ids for h in found]
        for h in found:
            value, _ = bart.loss(np.array([source]), np.array([h.ids]), p, c)
            np.testing.assert_allclose(h.score, -value, rtol=1e-10)


@pytest.mark.parametrize(("sources", "changes", "message"), [
    ([[1, 2], []], {}, "a source is empty; give it some text"),
    ([[1, 2]], {"eos_token_id": None}, "no eos_token_id, so no target would end; set it"),
])
def test_what_cannot_be_searched_is_refused(sources, changes, message):
    c = bart.BartConfig(**BART, **changes)
    with pytest.raises(UserError, match=message):
        beam.targets(randomized(bart, c), c, sources)


def test_scores_that_are_not_numbers_are_a_user_error():
    """Without rules none can exclude every token."""
    c = bart.BartConfig(**BART)
    p = randomized(bart, c) | {"final_logits_bias": np.full((1, c.vocab_size), np.nan)}
    with pytest.raises(UserError, match="diverged"):
        beam.targets(p, c, [[1, 2]])


@pytest.mark.parametrize("name", ["num_beams", "max_new_tokens"])
def test_a_search_of_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0; it must be at least 1"):
        SearchConfig(**{name: 0})
