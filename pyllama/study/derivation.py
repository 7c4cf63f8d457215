"""A derivation: the mathematics of a docstring in steps, each with a reason in words, run line by line.

A step quotes a line of mathematics.  The quoted text itself is what runs (program.py): on random numbers, where a
complex step gives every derivative exactly, and on symbols, where SymPy proves it.  So a step cannot say one thing and
check another, and a line of the docstring that no step quotes is an error.
"""
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SECTIONS = "Forward", "Backward"
MARGIN = 12                                         # columns of a docstring's left margin: sections and labels
TITLE = re.compile(r"[A-Z]\w+\b")


class Step(NamedTuple):
    """One line of a derivation.

    line        the mathematics, as the docstring has it, without its remark
    why         why it holds, in a sentence or two; formulas in it stand in backticks
    code        the line of the code that it justifies, if there is one
    extra       the docstring does not have this line: a step between two of its lines
    matrices    factors without indices are matrices: x [N D] times w [E D] is an error, x wᵀ is not
    check       what checks the line in place of running it: returns what is wrong, "" if nothing is.  For lines that
                are not in the notation, such as the probability of an event
    """
    line: str
    why: str
    code: str = ""
    extra: bool = False
    matrices: bool = False
    check: Callable[[], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """The steps, and what the names in them stand for.

    title       what is derived, a noun phrase
    steps       in the order of the docstring
    module      whose docstring is quoted; "" if the docstring of the derivation's own module is
    source      the module whose code the steps quote; "" for the one whose docstring they quote
    symbols     ask SymPy for proofs, which takes too long for the whole of a model
    case        the label in the docstring's margin of the lines that hold for these options alone; "" for the others
    arrays      name -> its axes, such as {"x": "rows D"}; {}: those of the op's shape line, where ... is "rows"
    letters     index -> the axis that it runs over
    sizes       axis -> its length for symbols; for numbers it may be one more, and is at least 2
    fixed       axes whose length is the same for numbers
    implicit    axes that the formulas leave out
    integers    name -> the axis whose indices these integers are
    constants   name -> the option of the op that it stands for; "" if it is not an option.  Between 0 and 1
    whole       name -> the whole number that it is; SymPy's proofs are for any number
    options     of the op, for this case; formulas may name those that are numbers
    loss        output -> the name of its upstream gradient; {}: those of the op
    gradients   name -> what it is the gradient of, where its name does not say it
    code        code(names) -> {name: array}: what the code computes of the same numbers; None: the op's two passes
    """
    title: str
    steps: tuple[Step, ...]
    module: str = ""
    source: str = ""
    symbols: bool = True
    case: str = ""
    arrays: dict[str, str] = field(default_factory=dict)
    letters: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    implicit: tuple[str, ...] = ("rows",)
    integers: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, str] = field(default_factory=dict)
    gradients: dict[str, str] = field(default_factory=dict)
    code: Callable | None = None


class Quoted(NamedTuple):
    """A line of mathematics in a docstring: with = under Forward or Backward."""
    section: str
    label: str
    text: str


def mathematics(doc: str) -> Iterator[Quoted]:
    """The lines of mathematics of a docstring.

    >>> from pyllama.study.derivation import mathematics
    >>> [line.text for line in mathematics("Forward     y = 2 x          a remark")]
    ['y = 2 x']
    """
    section = label = ""
    for line in doc.splitlines():
        margin, text = line[:MARGIN].strip(), line[MARGIN:]
        if line[:1].strip():
            section, label = (margin.split() or [""])[0], ""
        elif margin or not text.strip():
            label = margin
        if section in SECTIONS and "=" in text:
            yield Quoted(section, label, plain(text))


def plain(line: str) -> str:
    """A line of mathematics without its remark, and with single spaces, to compare."""
    from pyllama.study.notation import without_remark

    return " ".join(without_remark(line).split())


def quoted_wrongly(steps: list[tuple[str, Step]], doc: str) -> list[str]:
    """What is wrong with the quotes, in sentences: lines that are gone, lines that no step quotes.

    steps   (case, step) of all derivations of one docstring
    """
    lines = [(line.label, line.text) for line in mathematics(doc)]
    quotes = [(case, plain(step.line)) for case, step in steps if not step.extra]
    found = [f"the docstring does not have the line {text!r}{of(case)}" for case, text in quotes
             if (case, text) not in lines]
    found += [f"no step quotes the line {text!r}{of(case)}" for case, text in lines if (case, text) not in quotes]
    if not found and sorted(quotes, key=first) != sorted(lines, key=first):
        found.append("the steps are not in the order of the docstring")
    return found


def misquotes(name: str) -> list[str]:
    """What is wrong with the quotes of the derivations of this name, of docstrings and of code, in sentences."""
    those, module = load(name)
    found = []
    for source in dict.fromkeys(one.module for one in those):
        same = [one for one in those if one.module == source]
        found += quoted_wrongly([(one.case, step) for one in same for step in one.steps], docstring(same[0], module))
    for one in those:
        code = " ".join(inspect.getsource(importlib.import_module(one.source or one.module or module.__name__)).split())
        found += [f"the code does not have the line {step.code!r}{of(one.case)}" for step in one.steps
                  if " ".join(step.code.split()) not in code]
    return found


def first(pair: tuple[str, str]) -> str:
    return pair[0]


def of(case: str) -> str:
    return f" of {case}" if case else ""


def load(name: str) -> tuple[list[Derivation], Any]:
    """(the derivations, their module) of a name.  Raises KeyError if there is none."""
    try:
        module = importlib.import_module(f"pyllama.study.derivations.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"pyllama.study.derivations.{name}":
            raise
        raise KeyError(name) from None
    found = module.DERIVATION
    return [found] if isinstance(found, Derivation) else list(found), module


def names() -> list[str]:
    """All derivations, in alphabetical order."""
    import pkgutil

    from pyllama.study import derivations

    return sorted(info.name for info in pkgutil.iter_modules(derivations.__path__))


def docstring(one: Derivation, module: Any) -> str:
    """The docstring that the derivation quotes."""
    quoted = importlib.import_module(one.module) if one.module else module
    return inspect.getdoc(quoted) or ""


def setting(name: str) -> str:
    """What a reader must know before the first step: arrays, options, and the axis of each index."""
    those, module = load(name)
    return "\n".join(filter(None, [above_forward(docstring(those[0], module)), indices(those)]))


def above_forward(doc: str) -> str:
    """A docstring without its first line and what stands below Forward."""
    return inspect.cleandoc(doc.partition("\nForward")[0].partition("\n")[2])


def indices(those: list[Derivation]) -> str:
    """Which axis each index runs over, and which axes the formulas leave out, as a section of a docstring."""
    first, letters = those[0], {letter: axis for one in those for letter, axis in one.letters.items()}
    if not letters:
        return section("Indices", "none: each line holds for each number by itself")
    runs = [f"{', '.join(letter for letter, over in letters.items() if over == axis)} over {axis}"
            for axis in dict.fromkeys(letters.values())]
    axes = " ".join(first.arrays.values()).split()
    shape_line = first.module.startswith("pyllama.ops.") and not first.arrays
    if left_out := [axis for axis in first.implicit if axis in axes or shape_line]:
        runs.append(f"none over {', '.join(left_out)}")
    return section("Indices", "; ".join(runs))


def section(name: str, text: str) -> str:
    return textwrap.fill(f"{name:{MARGIN}}{text}", 80, subsequent_indent=" " * MARGIN)
