"""The catalogue: every bug applies, changes a gradient, leaves the values alone, and differs from the others."""
import itertools

import numpy as np
import pytest

from pyllama import backend, op, ops
from pyllama.testing.catalogue import Bug, bugs, planted
from pyllama.testing.layouts import strided
from pyllama.testing.problems import SMALL, Sizes, choose_by, problem

PROBLEMS = 40
ROUNDING = 1e-9                             # relative to the largest entry; that of the ops is below 1e-12
NOTHING = 1e-6                              # a gradient whose entries are all smaller is 0 but for rounding
BUG = bugs("tanh")[0]


def slope():
    _, back = ops.tanh(np.array([1.0]))
    return back(np.ones(1))[0].item()


RIGHT = slope()


def test_a_bug_is_planted_and_removed_even_after_an_exception():
    with pytest.raises(AssertionError), planted(BUG):
        assert slope() == RIGHT
    assert slope() == RIGHT
    assert op.OPS["tanh"].has_kernels


def test_no_kernel_runs_instead_of_the_bug():
    for name in backend.available():
        with backend.use(name), planted(BUG):
            assert abs(slope() - RIGHT) > 0.1


def test_bugs_of_two_ops_stand_at_once():
    with planted(BUG), planted(bugs("softmax")[0]):
        assert abs(slope() - RIGHT) > 0.1
    assert slope() == RIGHT


def test_an_op_has_one_bug_at_a_time():
    with planted(BUG), pytest.raises(ValueError, match="has the bug square_missing already"), planted(BUG):
        pass
    assert slope() == RIGHT


def test_a_patch_that_does_not_apply_is_refused_in_one_sentence():
    stale = Bug("stale", "tanh", "backward", "1 - z * z", "1", "", "operator mutation", ("", "", ""))
    with pytest.raises(ValueError, match=r"^the bug tanh.stale does not apply: '1 - z \* z' occurs 0 times"), \
            planted(stale):
        pass
    assert slope() == RIGHT


def test_an_unknown_op_is_refused():
    with pytest.raises(ValueError, match="the catalogue has no op 'tahn'; choose among"):
        bugs("tahn")


class FewNumbers(Sizes):
    """Sizes that suffice to tell the bugs apart."""

    def candidates(self, axis):
        return SMALL + {"B": [0], "N": [0, 17], "V": [17]}.get(axis, [])


def drawn(name):
    """[(inputs, options, dy), ...], every second one with strided arrays."""
    rng = np.random.default_rng(0)
    choose = choose_by(rng)
    return [(problem(op.OPS[name], choose, sizes=FewNumbers(choose)), k % 2 == 1) for k in range(PROBLEMS)]


def arrays(tree):
    """The arrays of nested tuples and lists; None has none."""
    if isinstance(tree, tuple | list):
        return [x for part in tree for x in arrays(part)]
    return [] if tree is None else [np.asarray(tree)]


def copied(tree, apart):
    if isinstance(tree, tuple | list):
        return tuple(copied(part, apart) for part in tree)
    return None if tree is None else strided(tree) if apart else np.array(tree)


def passes(name, drawn):
    """(the values, what backward does: its gradients, those of a second call, and what is left in its inputs)"""
    (inputs, options, dy), apart = drawn
    inputs, dy = copied(inputs, apart), copied(dy, apart)
    with backend.use("numpy"):
        y, back = op.OPS[name](*inputs, **options)
    effects = [[x.copy() for x in arrays(back(dy))] for _ in range(2)]
    return arrays(y), [*effects[0], *effects[1], *map(np.array, arrays(dy)), *map(np.array, arrays(inputs))]


def difference(effects, others):
    """The largest difference of two arrays, relative to their largest entry; infinite if shapes differ."""
    largest = 0.0
    for a, b in zip(effects, others, strict=True):
        if a.shape != b.shape:
            return np.inf
        size = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0), NOTHING)
        largest = max(largest, np.abs(a - b).max(initial=0) / size)
    return largest


@pytest.mark.parametrize("name", op.OPS)
def test_every_bug_of_an_op_changes_the_backward_pass_alone_and_differs_from_the_others(name):
    problems = drawn(name)
    values, right = zip(*[passes(name, drawn) for drawn in problems], strict=True)
    behaviors = {"none": right}
    for bug in bugs(name):
        with planted(bug):
            y, behaviors[bug.name] = zip(*[passes(name, drawn) for drawn in problems], strict=True)
        for old, new in zip(values, y, strict=True):
            assert [x.tobytes() for x in old] == [x.tobytes() for x in new], bug
    for one, other in itertools.combinations(behaviors, 2):
        assert max(map(difference, behaviors[one], behaviors[other])) > ROUNDING, (one, other)


def test_every_op_has_bugs_and_many_of_all_happened():
    assert {bug.op for bug in bugs()} == set(op.OPS)
    assert len(bugs()) >= 120
    assert sum(bug.cited for bug in bugs()) >= 40


def test_every_bug_is_described():
    for bug in bugs():
        assert len(bug.hints) == 3, bug
        assert all(text.endswith((".", "?")) for text in (bug.cause, *bug.hints)), bug
        assert bug.cited == ("/" in bug.source), bug
