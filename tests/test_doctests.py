"""The examples in the docstrings print what they say, on every backend; every op has an example."""
import contextlib
import doctest
import importlib
import inspect
import io
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

import pyllama
import pyllama.testing
from pyllama import backend
from pyllama.cli.inspect import ops
from pyllama.op import OPS

PROMPT = ">>> "
BACKWARD = re.compile(r"^ *>>> .*\bback\(", re.MULTILINE)
PUBLIC = [pyllama, pyllama.testing]


def modules_with_examples():
    """Their names.  The sources are searched, not the modules, because some can be imported only with CuPy."""
    root = Path(pyllama.__file__).parent
    for source in sorted(root.rglob("*.py")):
        if PROMPT in source.read_text(encoding="utf-8"):
            parts = source.relative_to(root.parent).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__")


MODULES = [*modules_with_examples()]


def backends(module):
    """An op's own; for other modules, those of the host."""
    op = OPS.get(module.removeprefix("pyllama.ops."))
    names = op.backends() if op else backend.available()
    return [name for name in names if name != "cuda"]


@pytest.fixture
def nothing_stored():
    """Hypothesis's find() begins with what an earlier run stored in .hypothesis, and may print a larger example."""
    before = settings.default
    settings.register_profile("nothing stored", before, database=None)
    settings.load_profile("nothing stored")
    yield
    settings.register_profile("before", before)
    settings.load_profile("before")


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module, monkeypatch):
    """They use no name that they do not import or define: a reader can paste them.

    Those that do not ask for kernels on their first backend, as ops and sums do, do the same on the others.
    """
    asked = []

    def note(inputs, kernels_for=backend.kernels_for):
        asked.append(inputs)
        return kernels_for(inputs)

    monkeypatch.setattr(backend, "kernels_for", note)
    for on in backends(module):
        runner = doctest.DocTestRunner(verbose=False)
        report = io.StringIO()
        with backend.use(on):
            for example in doctest.DocTestFinder().find(importlib.import_module(module), globs={}):
                runner.run(example, out=report.write)
        assert not runner.failures, f"{on}: {report.getvalue()}"
        if not asked:
            break


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_op_has_an_example_of_both_passes(op):
    assert f"pyllama.ops.{op.name}" in MODULES
    assert re.search(rf"^ *>>> from pyllama.ops import {op.name}$", op.__doc__, re.MULTILINE)
    assert BACKWARD.search(op.__doc__)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in PUBLIC
                                              for name in getattr(module, "__all__", ())])
def test_every_public_name_has_an_example(module, name):
    """An object's example may also be in its methods' docstrings."""
    public = getattr(module, name)
    members = vars(public).values() if inspect.isclass(public) else ()
    methods = [member for member in members if inspect.isfunction(member) or isinstance(member, property)]
    assert any(PROMPT in (inspect.getdoc(each) or "") for each in (public, *methods))


@pytest.mark.parametrize("name", OPS)
def test_a_derivation_is_printed_unbroken_on_80_columns(name):
    """Its source has three quotation marks before the first line, and fits as well."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ops((name,))
    text = inspect.getdoc(importlib.import_module(f"pyllama.ops.{name}"))
    assert text in printed.getvalue()
    assert max(map(len, f'"""{text}'.splitlines())) <= 80


def test_a_wrong_example_fails(monkeypatch):
    """The examples are run, not only found."""
    monkeypatch.setattr(importlib.import_module("pyllama.ops.relu"), "__doc__", ">>> 1 + 1\n3\n")
    with pytest.raises(AssertionError, match="Expected:"):
        test_examples_print_what_they_say("pyllama.ops.relu", monkeypatch)


@pytest.mark.usefixtures("kernels")
def test_an_example_that_asks_for_kernels_but_calls_no_op_runs_on_every_backend(monkeypatch):
    example = ModuleType("example", """
        >>> import numpy as np
        >>> from pyllama import backend
        >>> backend.kernels_for([np.ones(1)]) is None
        True
    """)
    monkeypatch.setitem(sys.modules, "example", example)
    with pytest.raises(AssertionError, match=r"^cpu: "):
        test_examples_print_what_they_say("example", monkeypatch)
