"""A mistake in a derivation, in the docstring that it quotes or in the code beside it ends the build of the site."""
import inspect
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
pytest.importorskip("myst_parser", reason="the extra 'docs' is not installed")
pytest.importorskip("sympy", reason="the extra 'docs' is not installed")

from docutils.parsers.rst import DirectiveError

from pyllama.ops import rms_norm
from pyllama.study.derivations import rms_norm as study
from pyllama.testing.mutation.planting import copied, plant, transplant

MODULE = sys.modules[rms_norm.forward.__module__]


@pytest.fixture
def built(site, monkeypatch):
    """built(): the steps as the build makes them, nothing kept."""
    derived = site("derived")
    monkeypatch.setattr(derived, "keep", lambda name, make: make())
    return lambda: derived.derived.__wrapped__("rms_norm")


def test_without_a_mistake_it_is_built(built):
    (case, steps), = built()
    assert case == ""
    assert len(steps) == len(study.DERIVATION.steps)


@pytest.mark.parametrize(("old", "new", "sentence"), [
    ("dw_j = Σ_rows dy_j n_j", "dw_j = Σ_rows dy_j x_j",
     "rms_norm: the docstring does not have the line 'dw_j = Σ_rows dy_j n_j'"),                     # a line changed
    ("dw_j = Σ_rows dy_j n_j", "dw_j = Σ_rows dy_j n_j\n            dw_j = Σ_rows dy_j x_j r",
     "rms_norm: no step quotes the line 'dw_j = Σ_rows dy_j x_j r'"),                                # a line unproved
])
def test_a_docstring_that_the_steps_do_not_quote(built, monkeypatch, old, new, sentence):
    assert MODULE.__doc__.count(old) == 1
    monkeypatch.setattr(MODULE, "__doc__", MODULE.__doc__.replace(old, new))
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        built()


def test_a_step_that_is_wrong_and_a_docstring_that_says_the_same(built, monkeypatch):
    right, wrong = "dw_j = Σ_rows dy_j n_j", "dw_j = Σ_rows dy_j x_j"
    steps = tuple(step._replace(line=wrong) if step.line == right else step for step in study.DERIVATION.steps)
    monkeypatch.setattr(study, "DERIVATION", replace(study.DERIVATION, steps=steps))
    monkeypatch.setattr(MODULE, "__doc__", MODULE.__doc__.replace(right, wrong))
    with pytest.raises(ValueError, match=r"^rms_norm: dw_j = Σ_rows dy_j x_j: .+"):
        built()


def test_code_that_computes_something_else(built, monkeypatch):
    source = inspect.getsource(rms_norm.backward)
    right = copied(rms_norm.backward)
    plant(rms_norm.backward, source.replace("np.sum(dy * n", "np.sum(dy * x"))
    try:
        with pytest.raises(ValueError, match=r"^rms_norm: dw is not the same in the code and in the derivation$"):
            built()
    finally:
        transplant(right, rms_norm.backward)


def test_code_that_no_longer_has_the_line_that_a_step_quotes(built, monkeypatch):
    steps = tuple(step._replace(code=step.code.replace("dy * n", "n * dy")) for step in study.DERIVATION.steps)
    monkeypatch.setattr(study, "DERIVATION", replace(study.DERIVATION, steps=steps))
    with pytest.raises(ValueError, match=r"^rms_norm: the code does not have the line 'dw = np\.sum\(n \* dy, "):
        built()


def test_a_mistake_is_an_error_of_the_page_in_its_own_words(site):
    """Level 3 is an error: -W lets no build succeed with one."""
    extension = site("extension")
    directive = extension.Steps("steps", ["rms_norm"], {}, [], 1, 0, "", None, SimpleNamespace(reporter=None))
    with pytest.raises(DirectiveError) as raised, extension.mistakes(directive):
        raise ValueError("rms_norm: no step quotes the line 'y = x'")
    assert (raised.value.level, raised.value.msg) == (3, "rms_norm: no step quotes the line 'y = x'")
