"""A session after any calls compared with its definition: the scores of each sequence, encoded alone and at once."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend
from pyllama.generation.session import DynamicSession, encoded, open_session
from pyllama.models import bart, transformer
from pyllama.models.kv_cache import Cache
from pyllama.models.layers import token_scores
from tests.test_generate import each_case, ids, model, same
from tests.test_models import BART, randomized

ROOM = 16


@pytest.fixture(autouse=True, params=backend.available())
def kernels(request):
    """Every kind of session: those of a plan need the C kernels."""
    with backend.use(request.param):
        yield


def follow(data, session, known, after, even=False):
    """Extend, keep and cut a session as drawn, and compare the scores.

    known       the tokens of each sequence so far
    after       after(tokens, n) [T V]: the right scores, of a sequence that was the n-th at first
    even        do all sequences keep the same length?
    """
    first = [*range(len(known))]
    for _ in range(data.draw(st.integers(1, 6))):
        assert session.lengths == [*map(len, known)]
        action = data.draw(st.sampled_from(["extend", "extend every", "keep", "cut"]))
        room = ROOM - max(map(len, known))
        if action == "keep":
            rows = data.draw(st.lists(st.integers(0, len(known) - 1), min_size=1, max_size=4))
            session.keep(rows)
            known, first = [known[row] for row in rows], [first[row] for row in rows]
        elif action == "cut":
            shared = data.draw(st.integers(0, min(map(len, known))))
            lengths = [len(k) - (shared if even else data.draw(st.integers(0, len(k)))) for k in known]
            session.cut(lengths)
            known = [k[:length] for k, length in zip(known, lengths, strict=True)]
        elif room:
            shared = data.draw(st.integers(1, min(room, 4)))
            counts = [shared if even else data.draw(st.integers(1, min(room, 4))) for _ in known]
            new = [data.draw(st.lists(ids, min_size=n, max_size=n)) for n in counts]
            known = [k + n for k, n in zip(known, new, strict=True)]
            scores = session.extend(new, every=action == "extend every")
            for k, row, n, z in zip(known, first, new, scores, strict=True):
                same(z, after(k, row)[-len(n):] if action == "extend every" else after(k, row)[-1])


@each_case
@given(data=st.data())
def test_a_decoders_session_scores_each_sequence_as_alone(case, data):
    p, c = model(case)
    batch = data.draw(st.integers(1, 3))
    session = open_session(p, c, batch, ROOM)
    follow(data, session, [[] for _ in range(batch)], lambda known, _: c.model.logits(np.array([known]), p, c)[0][0])


@given(data=st.data())
def test_an_encoder_decoders_session_scores_each_target_as_alone(data):
    c = bart.BartConfig(**BART | {"vocab_size": 19, "max_position_embeddings": ROOM})
    p, sources = randomized(bart, c), [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    session = open_session(p, c, len(sources), ROOM, encoded(p, c, sources))
    def after(known, source):
        memory, _ = transformer.encode(np.array([sources[source]]), p["model"], c)
        x, _ = transformer.decode(np.array([known]), memory, p["model"], c)
        return token_scores(x[0], *transformer.head(p, c))[0]

    follow(data, session, [[] for _ in sources], after, even=True)


@each_case
@given(data=st.data())
def test_a_state_continues_in_another_session(case, data):
    """Also the state of a sequence that stood behind padding."""
    p, c = model(case)
    tokens = data.draw(st.lists(ids, min_size=1, max_size=9))
    session = open_session(p, c, 2, ROOM)
    session.extend([tokens, [3] * 9])
    session.keep([0])
    other = open_session(p, c, 1, ROOM)
    other.restore(session.state())
    assert other.lengths == [len(tokens)]
    follow(data, other, [tokens], lambda known, _: c.model.logits(np.array([known]), p, c)[0][0])


@each_case
def test_a_call_that_fails_or_is_interrupted_appends_nothing(case, monkeypatch):
    p, c = model(case)
    session, calls, extend = open_session(p, c, 2, ROOM), [], Cache.extend

    def interrupted(self, k, v):                    # in the last layer, after the caches of the others
        if calls.append(1) or len(calls) == c.num_hidden_layers:
            raise KeyboardInterrupt
        return extend(self, k, v)

    session.extend([[3, 1], [4, 1]])
    with pytest.raises(IndexError, match="outside the vocabulary"):
        session.extend([[1], [19]])
    if isinstance(session, DynamicSession):
        monkeypatch.setattr(Cache, "extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.extend([[1], [2]])
        monkeypatch.undo()
    assert session.lengths == [2, 2]
    same(session.extend([[5], [6]])[1], c.model.logits(np.array([[4, 1, 6]]), p, c)[0][0, -1])


def test_a_state_is_a_copy_in_the_layout_that_the_protocol_names():
    p, c = model("gqa")
    session = open_session(p, c, 1, ROOM)
    session.extend([[3, 1, 4]])
    state = session.state()
    assert {name: a.shape for name, a in state.items()} == {
        "ids": (3,), **{f"layers.{i}.{name}": (2, 3, 2) for i in range(2) for name in "kv"}}
    before = {name: a.copy() for name, a in state.items()}
    session.cut([1])
    session.extend([[7, 7]])
    assert all((state[name] == a).all() for name, a in before.items())


def test_targets_of_different_lengths_are_refused_by_the_dynamic_graph():
    c = bart.BartConfig(**BART)
    p = randomized(bart, c)
    with backend.use("numpy"):
        session = open_session(p, c, 2, ROOM, encoded(p, c, [[1], [2]]))
    with pytest.raises(ValueError, match="the same length"):
        session.extend([[1], [2, 3]])
