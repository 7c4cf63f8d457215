"""Models in bfloat16.  No useful bound holds for a chain of many roundings, so the chain is cut at its ops and sums.

Each op is within its bound on any inputs: tests/test_ops.py.  What is left is what happens between ops.  A model runs
in bfloat16, and what its ops and sums return is recorded.  Then it runs in float64, where ops and sums return what was
recorded.  So what reaches the next op must be the same numbers, and each sum must be the exact one, rounded once.
"""
import contextlib
import sys

import ml_dtypes
import numpy as np
import pytest

from pyllama import params
from pyllama.models import MODELS
from pyllama.models.kv_cache import new_cache
from pyllama.op import watching
from pyllama.testing.accuracy import HALF_A_UNIT
from pyllama.testing.trees import is_float
from tests.test_models import CASES, IDS, PADDING, WRITERS, randomized, small

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SINGLE = 2.0 ** -24                                 # the largest relative error of a number rounded to float32
TERMS = 12                                          # of the longest sum of a parameter's gradients: steps of an LSTM
each_case = pytest.mark.parametrize(("model", "c", "inputs", "options"), CASES.values(), ids=CASES)


def working(p):
    """Matrices in bfloat16, vectors in float32, as in training."""
    return mapped(p, lambda a: a.astype(BFLOAT16 if a.ndim > 1 else np.float32))


def mapped(tree, f):
    return params.rebuild(tree, (f(a) for _, a in params.leaves(tree)))


def wide(x):
    """In float64; a tuple of arrays, too.  Numbers and integers stay as they are."""
    if isinstance(x, tuple | list):
        return tuple(map(wide, x))
    return x.astype(np.float64) if is_float(x) and np.ndim(x) else x


class Recorder:
    """What the ops and sums of a run in bfloat16 returned."""

    def __init__(self):
        self.calls, self.sums = [], []

    def watch(self, op, call, inputs, options):
        y, back = call(*inputs, **options)
        self.calls.append([op, inputs, y])

        def recorded_back(dy, record=self.calls[-1]):
            grads = back(dy)
            record += [dy, grads]
            return grads

        return y, recorded_back

    def summed(self, f, *arrays):
        y = f(*arrays)
        self.sums.append((arrays, y))
        return y


class Replay(Recorder):
    """A run in float64 that continues from recorded results."""

    def watch(self, op, call, inputs, options):
        recorded, wanted, y, *backward = self.calls.pop(0)
        assert recorded is op
        require_equal(wanted, inputs)

        def recorded_back(dy):
            dy_wanted, grads = backward
            require_equal(op.each(dy_wanted), op.each(dy))
            return wide(grads)

        return wide(y), recorded_back

    def summed(self, f, *arrays):
        wanted, y = self.sums.pop(0)
        require_equal(wanted, arrays)
        exact = f(*arrays)
        rounding_of_terms = len(arrays) * SINGLE * sum(map(np.abs, arrays))
        assert (np.abs(wide(y) - exact) <= HALF_A_UNIT * np.abs(exact) + rounding_of_terms).all()
        return wide(y)


def require_equal(recorded, arrays):
    """Constants, such as sinusoids, are rounded to float32."""
    for a, b in zip(recorded, arrays, strict=True):
        constant = getattr(a, "dtype", None) == np.float32
        np.testing.assert_allclose(*map(in_numbers, (a, b)), rtol=SINGLE if constant else 0)


def in_numbers(x):
    return np.zeros(0) if x is None else wide(x)


@pytest.fixture
def run(monkeypatch):
    """run(recorder): a context in which it sees the ops and sums of models."""
    @contextlib.contextmanager
    def seen_by(recorder):
        with monkeypatch.context() as patch, watching(recorder.watch):
            for module in [m for name, m in sys.modules.items() if name.startswith("pyllama.models.")]:
                if hasattr(module, "total"):
                    patch.setattr(module, "total", lambda *xs, total=module.total: recorder.summed(total, *xs))
                if hasattr(module, "in_float32"):
                    patch.setattr(module, "in_float32", lambda f, *xs, once=module.in_float32: recorder.summed(
                        lambda *xs: once(f, *xs), *xs))
            yield

    return seen_by


@each_case
def test_between_ops_nothing_is_rounded_but_sums_and_each_once(model, c, inputs, options, run):
    p, recorder, replay = working(randomized(model, c)), Recorder(), Replay()
    with run(recorder):
        value, back = model.loss(*inputs, p, c, **options)
        grads = dict(params.leaves(back(0.5)))
    replay.calls, replay.sums = recorder.calls, recorder.sums
    with run(replay):
        exact, exact_back = model.loss(*inputs, mapped(p, wide), c, **options)
        wanted = dict(params.leaves(exact_back(0.5)))
    assert not replay.calls
    assert not replay.sums
    assert value.dtype in ("float32", "float64")
    assert abs(value - exact) <= 2 * SINGLE * abs(exact)
    assert grads.keys() == wanted.keys()
    for name, a in grads.items():
        assert a.dtype == "float32", name
        assert np.abs(wide(a) - wanted[name]).max() <= TERMS * SINGLE * max(1, np.abs(wanted[name]).max()), name


@each_case
def test_gradients_are_added_in_float32(model, c, inputs, options):
    """As in training.  Each is a sum of at most TERMS arrays, in whatever order they are made."""
    p = working(randomized(model, c))
    want = dict(params.leaves(model.loss(*inputs, p, c, **options)[1]()))
    grads = mapped(p, lambda a: np.zeros(a.shape, np.float32))
    with params.adding(p, grads):
        params.add(grads, model.loss(*inputs, p, c, **options)[1]())
    for name, got in params.leaves(grads):
        assert np.abs(got - wide(want[name])).max() <= TERMS * SINGLE * max(1, np.abs(wide(want[name])).max()), name


@pytest.mark.parametrize("kind", WRITERS)
def test_texts_are_continued_with_a_cache_in_bfloat16(kind, run):
    model, c = MODELS[kind].model, small(kind, "lm")
    p, recorder, replay = working(randomized(model, c)), Recorder(), Replay()

    def continued(p, like):
        caches = new_cache(c, len(IDS), like)
        return [model.next_scores(IDS[:, start:end], p, c, mask=PADDING[:, :end], caches=caches)
                for start, end in ((0, 3), (3, 4), (4, 6))]

    with run(recorder):
        scores = continued(p, np.empty(0, BFLOAT16))
    replay.calls, replay.sums = recorder.calls, recorder.sums
    with run(replay):
        wanted = continued(mapped(p, wide), np.empty(0))
    for a, b in zip(scores, wanted, strict=True):
        assert a.dtype == BFLOAT16
        np.testing.assert_array_equal(wide(a), b)
