"""The catalogue: every bug applies, changes a gradient, leaves the values alone, and differs from the others."""
import numpy as np
import pytest

from pyllama import backend, op, ops
from pyllama.testing.catalogue import Bug, bugs, planted

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
