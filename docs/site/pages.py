"""What the site says about ops and derivations, from the registry, the derivations and the catalogue."""
import functools
import inspect
from html import escape
from pathlib import Path
from typing import NamedTuple

import pyllama.models
import pyllama.ops
from pyllama.op import OPS
from pyllama.study import derivation
from pyllama.study.mathml import mathml
from pyllama.study.running import CHECKED, DEFINED, EXACTLY, PROVED, Run
from pyllama.testing import catalogue

CLASSES = {DEFINED: "definition", PROVED: "proved", EXACTLY: "exact", CHECKED: "checked"}
CASE = "With {case}:"
OP_PAGE = """# {title}

`{shapes}`

```{{arrays}} {name}
```

## The derivation, step by step

```{{steps}} {name}
```

## The code

```{{opcode}} {name}
```

## Break it

```{{bugs}} {name}
```

## Where it is used

```{{users}} {name}
```
"""
OTHER_PAGE = """# {title}

```{{steps}} {name}
```
"""


class Shown(NamedTuple):
    """A step as the page shows it."""
    line: str
    why: str
    code: str
    badge: str
    kind: str


@functools.cache
def derived(name: str) -> list[tuple[str, list[Shown]]]:
    """(case, steps) of the derivations of this name, run now.  Raises ValueError if a step is wrong."""
    return [(one.case, steps_of(name, one)) for one in (derivation.load(name)[0] if has(name) else [])]


def has(name: str) -> bool:
    return name in derivation.names()


def steps_of(name: str, one: derivation.Derivation) -> list[Shown]:
    run, shown = Run(one), []
    for step, kind, wrong, _ in run.steps():
        if wrong:
            raise ValueError(f"{name}: {step.line}: {wrong}")
        shown.append(Shown(step.line, step.why, step.code, kind, CLASSES[kind]))
    if differs := run.code():
        raise ValueError(f"{name}: {differs}")
    return shown


def said(name: str) -> list[str]:
    """All sentences and badges that the steps may show, without a run: what is to be translated."""
    those = derivation.load(name)[0] if has(name) else []
    cases = [CASE.format(case=one.case) for one in those if one.case]
    return [*cases, *CLASSES, *(step.why for one in those for step in one.steps)] if those else []


def equation(step: Shown, number: int) -> str:
    """The number and the equation; the line of code that it justifies is named for the script that highlights it."""
    line = escape(" ".join(step.line.split()))
    try:
        shown = mathml(step.line).replace("<math>", f'<math display="block" alttext="{line}">')
    except ValueError:
        shown = f"<code>{line}</code>"
    return f'<div class="equation" data-code="{escape(step.code)}"><span class="number">{number}</span>{shown}</div>'


def head(name: str) -> str:
    """The docstring of an op above Forward."""
    return inspect.cleandoc(OPS[name].__doc__.partition("\nForward")[0].partition("\n")[2])


def code(name: str) -> str:
    """The source of both passes, a span for each line."""
    op = OPS[name]
    lines = "\n\n\n".join(inspect.getsource(f).rstrip() for f in (op.forward, op.backward)).splitlines()
    spans = "\n".join(f'<span class="line">{escape(line)}</span>' for line in lines)
    return f'<pre class="opcode" tabindex="0"><code>{spans}</code></pre>'


def bugs(name: str) -> list[catalogue.Bug]:
    """The bugs of an op that happened somewhere, else the first ones."""
    try:
        every = catalogue.bugs(name)
    except ValueError:
        return []
    return [bug for bug in every if bug.cited] or every[:3]


def patch(bug: catalogue.Bug) -> str:
    return (f'<pre class="patch"><code><del>{escape(bug.before)}</del>\n<ins>{escape(bug.after)}</ins></code></pre>'
            f'<p class="source">{escape(bug.source)}</p>')


def users(name: str) -> str:
    """The modules of models and training in which the op's name is called."""
    root = Path(pyllama.models.__file__).parents[1]
    found = [path.relative_to(root.parent).as_posix() for folder in ("models", "training", "ops")
             for path in sorted((root / folder).glob("*.py"))
             if f"{name}(" in path.read_text("utf-8") and path.stem != name]
    return "<ul>" + "".join(f"<li><code>{path}</code></li>" for path in found) + "</ul>"


def trust() -> str:
    """What is proved, checked and measured of every op, as a table."""
    rows = []
    for name in sorted(OPS):
        kinds = [step.kind for _, steps in derived(name) for step in steps]
        counts = [kinds.count(kind) for kind in ("proved", "exact", "checked")]
        cells = [f'<a href="ops/{name}.html">{name}</a>', *(counts if kinds else ["not derived step by step", "", ""]),
                 ", ".join(OPS[name].backends()[1:]) or "–", len(catalogue_of(name))]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return '<table class="trust">' + TRUST_HEAD + "".join(rows) + "</table>"


TRUST_HEAD = ("<tr><th>op</th><th>proved (SymPy)</th><th>exact (complex step)</th><th>checked</th><th>kernels</th>"
              "<th>bugs</th></tr>")


def catalogue_of(name: str) -> list[catalogue.Bug]:
    try:
        return catalogue.bugs(name)
    except ValueError:
        return []


def all_pages():
    """(path, text) of each page that is written."""
    for name in sorted(OPS):
        titles = [one.title for one in derivation.load(name)[0]] if has(name) else [name]
        yield Path("ops") / f"{name}.md", OP_PAGE.format(title=titles[0], name=name, shapes=OPS[name].shapes)
    for name in derivation.names():
        if name not in OPS:
            title = derivation.load(name)[0][0].title
            yield Path("derivations") / f"{name}.md", OTHER_PAGE.format(title=title, name=name)
