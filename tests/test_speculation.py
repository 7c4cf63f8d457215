"""Guesses of the next tokens: the text is that without guesses, and guessing stops where it does not pay."""
import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, Rules, generate, session
from pyllama.generation.speculation import DRAFTS, NGRAMS, Lookup, Pace
from pyllama.models import bart
from tests.test_generate import CHARACTERS, each_case, ids, model
from tests.test_models import BART, randomized


@pytest.fixture(params=["plan", "dynamic"])
def kind(request):
    """The kind of session that generate() opens."""
    with backend.use("numpy") if request.param == "dynamic" else contextlib.nullcontext():
        yield


@pytest.mark.usefixtures("kind")
@each_case
@pytest.mark.parametrize(("changes", "rules"), [
    ({}, {}), ({"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 4}),
    ({"eos_token_id": [8, 11]}, {"min_new_tokens": 9})])
def test_the_text_is_that_without_guesses(case, changes, rules):
    """Long enough to repeat itself, to slide the window, and to end within a guess."""
    p, c = model(case)
    for prompt in ([3, 1, 4], [5, 6, 5, 6, 5, 6, 5]):
        off = GenerationConfig(max_new_tokens=30, speculation="off", output_scores=True, **changes)
        wanted, = generate(p, c, [prompt], CHARACTERS, off, rules=Rules(**rules))
        for speculation in ("1", "5", "auto"):
            settings = replace(off, speculation=speculation)
            got, = generate(p, c, [prompt], CHARACTERS, settings, rules=Rules(**rules))
            assert replace(got, scores=None) == replace(wanted, scores=None)
            np.testing.assert_allclose(got.scores, wanted.scores, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("speculation", ["2", "auto"])
def test_a_target_is_that_without_guesses(speculation):
    c = bart.BartConfig(**BART | {"vocab_size": 19, "max_position_embeddings": 30})
    p = randomized(bart, c)
    for source in ([3, 1, 4, 1, 5, 9, 2, 6], [5, 5, 5, 5]):
        wanted, got = (generate(p, c, [source], settings=GenerationConfig(max_new_tokens=25, speculation=how))
                       for how in ("off", speculation))
        assert got == wanted


def test_guesses_save_passes(monkeypatch):
    """Of a text that repeats itself, each pass gives several tokens."""
    p, c = model("gqa")
    c = replace(c, max_position_embeddings=64)
    passes = []
    extend = session.DynamicSession.extend
    monkeypatch.setattr(session, "has_plan", lambda config, params: False)
    monkeypatch.setattr(session.DynamicSession, "extend", lambda self, tokens, every=False:
                        passes.append(len(tokens[0])) or extend(self, tokens, every))
    settings = GenerationConfig(max_new_tokens=50, speculation="4")
    same = Rules(suppress_tokens=[i for i in range(19) if i not in (3, 4)])
    result, = generate(p, c, [[3, 4]], settings=settings, rules=same)
    assert len(result.ids) == 50
    assert len(passes) < 30
    assert sum(passes) > 50


def test_sampling_and_beams_guess_nothing(monkeypatch):
    p, c = model("gqa")
    monkeypatch.setattr(Lookup, "guess", lambda self, most: pytest.fail("a guess") if most > 0 else [])
    for settings in (GenerationConfig(do_sample=True, speculation="3"), GenerationConfig(num_beams=2, speculation="3"),
                     GenerationConfig(speculation="off")):
        generate(p, c, [[3, 4]], settings=settings)


@given(text=st.lists(ids.map(lambda i: i % 3), max_size=30), most=st.integers(0, 5))
def test_a_guess_is_what_followed_the_last_time(text, most):
    guess = Lookup(text).guess(most)
    for n in NGRAMS:
        places = [i for i in range(n, len(text)) if text[i - n:i] == text[len(text) - n:]]
        if places:
            assert guess == text[places[-1]:places[-1] + most]
            return
    assert guess == []


def run(pace, seconds, is_right, passes=400):
    """The numbers of guesses of the passes, which take seconds(k), where each guess is right as is_right() says."""
    counts = []
    for _ in range(passes):
        k = pace.guesses()
        right = next((i for i in range(k) if not is_right()), k)
        pace.passed(k, right, seconds(k))
        counts.append(k)
    return counts


@pytest.mark.parametrize(("cost", "chance", "best"), [
    (0.0, 1.0, {DRAFTS[-1]}),                                   # guesses cost nothing and are right
    (0.0, 0.0, {0, *DRAFTS[:1]}),                               # never right
    (1.0, 0.9, {0}),                                            # a guess costs as much as a pass
    (0.1, 0.6, {2, 4}),                                         # 1.96 tokens in 1.2, 2.3 in 1.4, 2.5 in 1.8
])
def test_as_many_are_guessed_as_pay(cost, chance, best):
    rng = np.random.default_rng(0)
    counts = run(Pace(), lambda k: 1 + cost * k, lambda: rng.random() < chance)
    late = counts[100:]
    assert sum(k in best for k in late) > 0.8 * len(late)
    assert counts[0] == 0, "the time of a pass without guesses is measured first"


def test_guessing_stops_where_it_loses_and_comes_back_when_the_text_repeats_itself():
    pace = Pace()
    run(pace, lambda k: 1 + 0.1 * k, lambda: False)
    quiet = run(pace, lambda k: 1 + 0.1 * k, lambda: False)
    assert sum(quiet) < len(quiet) / 4, "with nothing to gain, few passes are lost"
    assert sum(run(pace, lambda k: 1 + 0.1 * k, lambda: True)) > 400


def test_one_slow_pass_does_not_stop_the_guesses():
    pace, slow = Pace(), iter([0.001, 0.001, 5.0])
    run(pace, lambda k: next(slow, 0.001), lambda: True, 3)
    assert all(run(pace, lambda k: 0.001, lambda: True, 20))


@pytest.mark.parametrize("value", ["on", "-1", "1.5", ""])
def test_another_speculation_is_refused(value):
    with pytest.raises(UserError, match=f'speculation is {value!r}; it must be "auto", "off" or a number of tokens'):
        GenerationConfig(speculation=value)


def test_a_number_of_guesses_may_be_an_int():
    assert GenerationConfig(speculation=3) == GenerationConfig(speculation="3")


def test_a_pass_has_at_most_the_rows_up_to_which_a_plan_gives_the_same_bits():
    if hasattr(backend.cpu, "same_bits"):
        assert 1 + DRAFTS[-1] <= backend.cpu.same_bits
    assert Pace("99").most == DRAFTS[-1]
    assert Pace("3").most == 3
