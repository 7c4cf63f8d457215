"""A session that chooses tokens itself chooses those that the scores name, and is then as if a caller had chosen."""
from dataclasses import replace

import numpy as np
import pytest

from pyllama import backend
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, generate, speculation
from pyllama.generation.kept import Kept
from pyllama.generation.session import open_session
from tests.test_decode import CONTEXT, EACH, THREADS, V, Writer, mixed, seen
from tests.test_generate import CHARACTERS, each_case, model

pytestmark = pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
STORED = pytest.mark.parametrize("kinds", [None, ["q8_0"], ["q4_0", "q8_0", "bf16"]], ids=str)


def opened(writer, kinds=None, begin=(3, 1, 4)):
    """A session that has read a beginning."""
    session = writer.session(params=mixed(writer.p, writer.config, kinds) if kinds else None)
    session.extend([[*writer.begin(0), *begin]])
    return session


def chosen_by_hand(session, token, most, among=V):
    """(the most likely tokens, the scores after each), by a call for each."""
    ids, scores = [], []
    for _ in range(most):
        scores.append(session.extend([[token]])[0].copy())
        token = int(scores[-1][:among].argmax())
        ids.append(token)
    return ids, scores


@pytest.fixture(params=THREADS)
def threads(request):
    before = backend.cpu.threads()
    backend.cpu.set_threads(request.param)
    yield request.param
    backend.cpu.set_threads(before)


@EACH
@STORED
@pytest.mark.usefixtures("threads")
def test_it_chooses_the_most_likely_tokens_and_keeps_all_bits(kind, kinds):
    writer = seen(kind, batch=1)
    before = backend.cpu.threads()
    backend.cpu.set_threads(1)
    by_hand = opened(writer, kinds)
    wanted, scores = chosen_by_hand(by_hand, 5, 12)
    backend.cpu.set_threads(before)
    session = opened(writer, kinds)
    first, z = session.follow(5, 7, V, [])
    np.testing.assert_array_equal(z[0], scores[6])
    rest, z = session.follow(first[-1], 5, V, [])
    np.testing.assert_array_equal(z[0], scores[11])
    assert first + rest == wanted
    assert session.lengths == by_hand.lengths
    np.testing.assert_array_equal(session.extend([[2, 7]]), by_hand.extend([[2, 7]]))


@EACH
def test_in_float64_too(kind):
    writer = seen(kind, "float64", batch=1)
    wanted, _ = chosen_by_hand(opened(writer), 5, 9)
    assert opened(writer).follow(5, 9, V, [])[0] == wanted


def test_it_ends_at_an_end_token_and_chooses_among_the_first_ids():
    writer = seen("llama", batch=1)
    wanted, scores = chosen_by_hand(opened(writer), 5, 12, among=V - 4)
    assert len({*wanted}) > 2
    session = opened(writer)
    place = wanted.index(wanted[4])
    ids, z = session.follow(5, 12, V - 4, [V - 1, wanted[4]])
    assert ids == wanted[:place + 1]
    np.testing.assert_array_equal(z[0], scores[place])
    assert session.lengths == [3 + len(ids)]


def test_of_equal_scores_it_takes_the_first_as_numpy_does():
    writer = seen("llama", batch=1)
    head = writer.p["lm_head"]["weight"] if "lm_head" in writer.p else writer.p["model"]["embed_tokens"]["weight"]
    head[...] = head[6]
    assert opened(writer).follow(5, 3, V, [])[0] == [0, 0, 0]


@pytest.mark.usefixtures("threads")
def test_of_many_scores_it_takes_the_first_highest():
    """They are compared some at a time; each is equal to another one far away."""
    many = 1000
    writer = Writer(replace(seen("llama").config, vocab_size=many, tie_word_embeddings=False), 1, "float32")
    head = writer.p["lm_head"]["weight"]
    head[many // 2:] = head[:many // 2]
    wanted, _ = chosen_by_hand(opened(writer), 5, 12, among=many)
    assert max(wanted) > 256
    assert opened(writer).follow(5, 12, many, [])[0] == wanted


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_where_scores_are_not_finite_it_leaves_the_choice_to_the_caller(odd):
    """The row of a token that is chosen is odd, so the scores after it are: what was chosen before stays."""
    writer = seen("llama", batch=1)
    wanted, _ = chosen_by_hand(opened(writer), 5, 5)
    fatal = next(i for i in wanted if i not in (5, 3, 1, 4))
    count = wanted.index(fatal) + 1
    writer.p["model"]["embed_tokens"]["weight"][fatal] = odd
    session = opened(writer)
    assert session.follow(5, 8, V, [])[0] == wanted[:count]
    assert session.lengths == [3 + count]
    ids, z = session.follow(fatal, 8, V, [])
    assert ids == []
    assert not np.isfinite(z.max())
    assert session.lengths == [4 + count]
    settings = GenerationConfig(max_new_tokens=9, speculation="off")
    with pytest.raises(UserError, match="not finite"):
        generate(writer.p, writer.config, [[3, 1, 4, 5]], settings=settings)


def test_what_cannot_be_followed_is_refused():
    machine = opened(seen("llama", batch=1))._machine
    scores = np.empty((1, V), np.float32)
    for token, place, most, among in ((V, 0, 1, V), (-1, 0, 1, V), (0, 0, 0, V), (0, 0, 10 ** 6, V), (0, 0, 1, V + 1),
                                      (0, -1, 1, V)):
        with pytest.raises(ValueError, match="token"):
            machine.follow(token, place, most, among, [], scores)
    with pytest.raises(ValueError, match="2 sequences"):
        seen("llama", batch=2).session()._machine.follow(0, 0, 1, V, [], scores)


@each_case
@pytest.mark.parametrize("how", ["off", "auto"])
@pytest.mark.parametrize("delay", [0, 10])
def test_a_text_does_not_depend_on_how_many_tokens_are_computed_together(case, how, delay, monkeypatch):
    """Through the end of the context, to an end token, and to a stop string in the middle of a call."""
    monkeypatch.setattr(speculation, "DELAY", delay)
    p, c = model(case)
    plain = GenerationConfig(max_new_tokens=40, speculation=how)
    with backend.use("numpy"):
        wanted, = generate(p, c, [[3, 1, 4]], CHARACTERS, replace(plain, speculation="off"))
    changes = [{}, {"stop_strings": (wanted.text[7:9],)}, {"eos_token_id": [wanted.ids[6]]}, {"max_new_tokens": 5}]
    for change in changes:
        settings = replace(plain, **change)
        with backend.use("numpy"):
            wanted = generate(p, c, [[3, 1, 4]], CHARACTERS, replace(settings, speculation="off"))
        assert generate(p, c, [[3, 1, 4]], CHARACTERS, settings) == wanted


def test_after_a_stop_a_kept_session_holds_what_the_text_says(monkeypatch):
    monkeypatch.setattr(speculation, "DELAY", 10)
    p, c = model("gqa")
    settings = GenerationConfig(max_new_tokens=9, speculation="off")
    whole, = generate(p, c, [[3, 1]], CHARACTERS, settings)
    kept, stop = Kept(), replace(settings, stop_strings=(whole.text[3:5],))
    first, = generate(p, c, [[3, 1]], CHARACTERS, stop, kept=kept)
    assert kept._window.session.lengths == [1 + len(first.ids)]
    prompt = [3, 1, *first.ids, 7, 2]
    assert generate(p, c, [prompt], CHARACTERS, settings, kept=kept) == generate(p, c, [prompt], CHARACTERS, settings)


def test_learned_positions_end_a_call_where_they_end():
    writer = seen("gpt2", batch=1)
    session = opened(writer)
    ids, _ = session.follow(5, 10 ** 9, V, [])
    assert session.lengths == [CONTEXT]
    assert len(ids) == CONTEXT - 3
    with pytest.raises(UserError, match="n_positions"):
        session.follow(ids[-1], 2, V, [])


def test_a_session_op_by_op_leaves_the_choice_to_the_caller():
    p, c = model("gqa")
    with backend.use("numpy"):
        session = open_session(p, c, 1, 9)
        session.extend([[3, 1]])
        ids, scores = session.follow(4, 5, c.vocab_size, [])
    assert ids == []
    assert session.lengths == [3]
    assert scores.shape == (1, c.vocab_size)
