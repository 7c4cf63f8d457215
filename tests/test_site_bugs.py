"""A bug that a page plants: the lines that it changes, and the steps that fail with it."""
import numpy as np
import pytest

pytest.importorskip("sympy", reason="the extra 'docs' is not installed")

from pyllama.ops import rms_norm
from pyllama.testing import catalogue

OPS = dict.fromkeys(bug.op for bug in catalogue.bugs())


def named(name):
    op, _, bug = name.partition(".")
    return next(one for one in catalogue.bugs(op) if one.name == bug)


@pytest.mark.parametrize("op", OPS)
def test_the_listing_with_the_patch_is_the_code_with_the_bug(site, op):
    lines = site("derived").code(op)
    for bug in site("broken").shown(op):
        first, last, code = site("failing").patch(bug)
        planted = "\n".join([*lines[:first], code, *lines[last + 1:]])
        right = catalogue.original(catalogue.module_of(op), bug.function).rstrip()
        assert planted == "\n".join(lines).replace(right, bug.code.rstrip()), bug


@pytest.mark.parametrize(("name", "steps"), {
    "rms_norm.dw_from_the_overwritten_dy": ["dw_j = Σ_rows dy_j n_j"],
    "rms_norm.w_forgotten": ["g_j = w_j dy_j"],                             # wrong only in what is computed from it
    "rms_norm.dw_never_written": ["dw_j = Σ_rows dy_j n_j"],                # no step quotes the line
    "rms_norm.dy_read_as_contiguous": [],                                   # these numbers do not show it
    "rms_norm.dy_overwritten": [],
    "layer_norm.w_of_another_column": ["dw_j = Σ_rows dy_j n_j"],           # db, in the same line, stays right
    "add_rms_norm.a_gets_nothing": ["dx_j = da_j = h_j"],                   # the second name of its line
}.items())
def test_the_steps_that_fail_are_those_that_the_bug_breaks(site, name, steps):
    bug = named(name)
    one, = site("derived").of(bug.op)
    failures = site("failing").failures(bug)
    assert [one.steps[failure.step - 1].line for failure in failures] == steps
    assert all(failure.right != failure.wrong for failure in failures)


def test_the_numbers_are_those_of_the_steps_and_of_the_code(site):
    """In four digits; and still after a bug that writes to its inputs."""
    failing = site("failing")
    bug = named("rms_norm.dw_never_written")
    failing.failures(named("rms_norm.dy_overwritten"))
    failure, = failing.failures(bug)
    numbers = {name: array.data for name, array in failing.runs("rms_norm")[0].on_numbers.names.items()}
    dw = np.sum(numbers["dy"] * numbers["n"], axis=0)
    assert failure.entry == f"dw[{np.argmax(np.abs(dw))}]"
    assert float(failure.right) == pytest.approx(dw[np.argmax(np.abs(dw))], rel=5e-4)
    assert failure.wrong == "0"
    _, back = rms_norm(np.ones((1, 2)), np.ones(2))
    assert back(np.ones((1, 2)))[1].any()                                   # nothing stays planted
