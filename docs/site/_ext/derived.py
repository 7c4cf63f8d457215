"""The steps of a derivation as a page shows them: run now, each with the lines of the code that it justifies."""
import ast
import functools
import importlib
import inspect
from collections.abc import Iterable
from html import escape
from types import ModuleType
from typing import NamedTuple

from kept import keep

from pyllama.op import OPS
from pyllama.study import derivation
from pyllama.study.derivation import Derivation
from pyllama.study.mathml import mathml
from pyllama.study.running import CHECKED, DEFINED, EXACTLY, PROVED, Run

CLASSES = {DEFINED: "definition", PROVED: "proved", EXACTLY: "exact", CHECKED: "checked"}
CASE = "With {case}:"
PASSES = "forward", "backward"


class Shown(NamedTuple):
    """A step: `kind` is the class of its badge."""
    line: str
    why: str
    code: str
    badge: str
    kind: str


def of(name: str) -> list[Derivation]:
    """The derivations of this name, one for each case; [] if it is not derived step by step."""
    return derivation.load(name)[0] if name in derivation.names() else []


@functools.cache
def derived(name: str) -> list[tuple[str, list[Shown]]]:
    """(case, steps) of the derivations of this name, run now.

    Raises ValueError, a sentence, if a step is wrong, if it quotes what is not there, or if the docstring has a line of
    mathematics that no step quotes.
    """
    if name in derivation.names() and (found := derivation.misquotes(name)):
        raise ValueError(f"{name}: {found[0]}")
    return [(one.case, shown(name, one)) for one in of(name)]


def shown(name: str, one: Derivation) -> list[Shown]:
    badges = keep(f"steps of {name} {one.case}", lambda: kinds(name, one))
    return [Shown(step.line, step.why, step.code, badge, CLASSES[badge])
            for step, badge in zip(one.steps, badges, strict=True)]


def kinds(name: str, one: Derivation) -> list[str]:
    """How each step was shown to hold."""
    run, found = Run(one), []
    for step, kind, wrong, _ in run.steps():
        if wrong:
            raise ValueError(f"{name}: {step.line}: {wrong}")
        found.append(kind)
    if differs := run.code():
        raise ValueError(f"{name}: {differs}")
    return found


def said(name: str) -> list[str]:
    """All sentences and badges that the steps may show, without a run: what is to be translated."""
    those = of(name)
    cases = [CASE.format(case=one.case) for one in those if one.case]
    return [*cases, *CLASSES, *(step.why for one in those for step in one.steps)] if those else []


def equation(step: Shown, number: int, lit: Iterable[int], page: str = "") -> str:
    """The number, which is a link to the step (on its page), and the equation; `lit` are the lines of code that light
    up with it."""
    try:
        shown = display(step.line)
    except ValueError:
        shown = f"<code>{escape(squeezed(step.line))}</code>"
    return (f'<div class="equation" data-lines="{" ".join(map(str, lit))}">'
            f'<a class="number" href="{page}#step-{number}">{number}</a>{shown}</div>')


def display(line: str) -> str:
    """The formula on a line of its own.  Raises ValueError if it is not in the notation."""
    return mathml(line).replace("<math>", f'<math display="block" alttext="{escape(squeezed(line))}">')


def displays(lines: Iterable[str]) -> str:
    """The formulas of a chapter, one a line; long ones scroll, also by keyboard."""
    return "".join(f'<div class="equation" tabindex="0">{display(line)}</div>' for line in lines)


# --- the code beside the steps ----------------------------------------------------------------------------------------

@functools.cache
def code(name: str) -> list[str]:
    """The lines of the functions that the steps quote; of an op, both passes in any case."""
    those = of(name)
    module = importlib.import_module(those[0].source or those[0].module if those else f"pyllama.ops.{name}")
    quotes = [squeezed(step.code) for one in those for step in one.steps if step.code]
    shown = [text for function, text in functions(module)
             if (name in OPS and function in PASSES) or any(quote in squeezed(text) for quote in quotes)]
    return "\n\n\n".join(shown).splitlines()


def functions(module: ModuleType) -> list[tuple[str, str]]:
    """(name, source) of the functions of a module, in their order."""
    text = inspect.getsource(module)
    return [(node.name, str(ast.get_source_segment(text, node))) for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef)]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def quoted(quote: str, lines: list[str]) -> list[int]:
    """The numbers of the lines that have a part of the quote."""
    text = "".join(line.strip() + " " if line.strip() else "" for line in map(squeezed, lines))
    ends = []
    for line in map(squeezed, lines):
        ends.append((ends[-1] if ends else 0) + (len(line) + 1 if line else 0))
    quote = squeezed(quote)
    start = text.find(quote) if quote else -1
    if start < 0:
        return []
    begins = [0, *ends[:-1]]
    return [k for k, (begin, end) in enumerate(zip(begins, ends, strict=True))
            if begin < start + len(quote) and start < end - 1 and end > begin]


def listing(name: str) -> str:
    """The code, a span for each line, which ends it: a line that is hidden leaves no empty one."""
    spans = "".join(f'<span class="line">{escape(line)}\n</span>' for line in code(name))
    return f'<pre class="opcode" tabindex="0" role="region" aria-label="{name}.py"><code>{spans}</code></pre>'
