"""Beam search compared with exhaustive search, and decoding token by token with decoding at once."""
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, Rules, SearchConfig, beam, generate
from pyllama.generation.start import Start
from pyllama.generation.window import Window
from pyllama.models import bart, transformer
from tests.test_models import BART, CASES, randomized

END, V = 0, 3


class Toy:
    """A session whose next token depends on the source and on all of the target before it."""

    def __init__(self, table, sources):
        self.table, self.known = table, [(source,) for source in sources]

    @property
    def lengths(self):
        return [len(known) - 1 for known in self.known]

    def extend(self, tokens, every=False):
        self.known = [(*known, *new) for known, new in zip(self.known, tokens, strict=True)]
        return np.array([self.table(source, ids) for source, _, *ids in self.known])

    def keep(self, rows):
        self.known = [self.known[row] for row in rows]


def random_table(seed):
    """table(source, ids) -> scores [V] of the next token."""
    return lambda source, ids: np.random.default_rng([seed, source, *ids]).normal(0, 2, V)


def log_p(table, source, ids):
    """The log of a target's probability."""
    scores = [table(source, ids[:i]) for i in range(len(ids))]
    return sum(z[token] - np.log(np.exp(z).sum()) for z, token in zip(scores, ids, strict=True))


def found(table, count, rules=None, **settings):
    """For each of `count` sources the hypotheses of a search."""
    config = GenerationConfig(**settings)
    searches = [beam.Search(Start((9,), (source,), config.max_new_tokens, [END]), config, rules or Rules())
                for source in range(count)]
    window = Window(Toy(table, range(count)), None)
    beam.run(searches, window, window.extend([[9]] * count), V)
    return [search.done for search in searches]


def targets(most):
    """Every target of up to `most` tokens: it ends with END, or has them all."""
    for length in range(1, most + 1):
        for body in product(range(1, V), repeat=length - 1):
            yield (*body, END)
    yield from product(range(1, V), repeat=most)


@given(seed=st.integers(0, 999), most=st.integers(1, 4), length_penalty=st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0]))
def test_with_enough_beams_it_is_an_exhaustive_search(seed, most, length_penalty):
    table = random_table(seed)
    searched = found(table, 2, max_new_tokens=most, num_beams=V ** most, length_penalty=length_penalty)
    for source, hypotheses in enumerate(searched):
        every = sorted(((log_p(table, source, ids) / len(ids) ** length_penalty, list(ids)) for ids in targets(most)),
                       reverse=True)
        assert [h.ids for h in hypotheses] == [ids for _, ids in every]
        np.testing.assert_allclose([h.score for h in hypotheses], [score for score, _ in every], rtol=1e-12)


@given(seed=st.integers(0, 999), K=st.integers(1, 4), early_stopping=st.sampled_from([False, True, "never"]))
def test_few_beams_find_scores_that_are_true_and_as_many_as_asked_for(seed, K, early_stopping):
    table = random_table(seed)
    searched = found(table, 3, max_new_tokens=5, num_beams=K, early_stopping=early_stopping)
    for source, hypotheses in enumerate(searched):
        assert len({tuple(h.ids) for h in hypotheses}) == len(hypotheses) == K
        assert hypotheses == sorted(hypotheses, key=lambda h: -h.score)
        for h in hypotheses:
            np.testing.assert_allclose(h.score, log_p(table, source, h.ids) / len(h.ids), rtol=1e-12)


@given(numbers=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), n=st.integers(1, 15))
def test_the_best_are_those_of_a_stable_sort(numbers, n):
    total = np.where(np.array(numbers) == -3, -np.inf, numbers)
    order = [int(i) for i in np.argsort(-total, kind="stable")[:n] if total[i] > -np.inf]
    assert beam.best(total, n).tolist() == order


@given(seed=st.integers(0, 999))
def test_one_beam_is_the_chain_of_the_likeliest(seed):
    table = random_table(seed)
    (best,), = found(table, 1, max_new_tokens=6)
    chain: list[int] = []
    while len(chain) < 6 and chain[-1:] != [END]:
        chain.append(int(table(0, chain).argmax()))
    assert best.ids == chain


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
    settings = GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=5)
    together = generate(p, c, sources, settings=settings)
    for i, source in enumerate(sources):
        alone, several = generate(p, c, [source], settings=settings), together[3 * i:3 * i + 3]
        assert [result.ids for result in alone] == [result.ids for result in several]
        for result in several:
            value, _ = bart.loss(np.array([source]), np.array([result.ids]), p, c)
            np.testing.assert_allclose(result.score, -value, rtol=1e-10)


@pytest.mark.parametrize(("sources", "changes", "message"), [
    ([[1, 2], []], {}, "a source is empty; give it some text"),
    ([[1, 2]], {"eos_token_id": None}, "no eos_token_id, so no target would end; set it"),
])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_what_cannot_be_searched_is_refused(sources, changes, message, num_beams):
    c = bart.BartConfig(**BART, **changes)
    with pytest.raises(UserError, match=message):
        generate(randomized(bart, c), c, sources, settings=GenerationConfig(num_beams=num_beams))


@pytest.mark.parametrize("num_beams", [1, 2])
def test_scores_that_are_not_numbers_are_a_user_error(num_beams):
    """Without rules none can exclude every token."""
    c = bart.BartConfig(**BART)
    p = randomized(bart, c) | {"final_logits_bias": np.full((1, c.vocab_size), np.nan)}
    with pytest.raises(UserError, match="diverged"):
        generate(p, c, [[1, 2]], settings=GenerationConfig(num_beams=num_beams))


def test_more_texts_than_there_are_is_a_user_error():
    c = bart.BartConfig(**BART)
    settings = GenerationConfig(max_new_tokens=1, num_beams=99, num_return_sequences=99)
    with pytest.raises(UserError, match=f"num_return_sequences is 99, but there are only {c.vocab_size} texts; lower"):
        generate(randomized(bart, c), c, [[1, 2]], settings=settings)


@pytest.mark.parametrize("name", ["num_beams", "max_new_tokens"])
def test_a_search_of_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0; it must be at least 1"):
        SearchConfig(**{name: 0})
