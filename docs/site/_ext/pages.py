"""The pages that are written before the build: one for each op, and one for each other derivation."""
import inspect
from collections.abc import Iterator
from pathlib import Path

import derived

import pyllama.ops  # noqa: F401                            registers all ops
from pyllama.op import OPS
from pyllama.study import derivation

FACING = "---\nhide-toc: true\n---\n\n"                     # its place is needed by the code beside the steps
OP_PAGE = FACING + """# {title}

```{{arrays}} {name}
```

```{{verdict}} {name}
```

## The derivation, step by step

```{{steps}} {name}
```

```{{widgets}} {name}
```

## Break it

```{{bugs}} {name}
```

## Exercise

```{{exercise}} {name}
```

## Where it is used

```{{users}} {name}
```
"""
OTHER_PAGE = FACING + """# {title}

```{{arrays}} {name}
```

```{{steps}} {name}
```

```{{widgets}} {name}
```
"""


def title(name: str) -> str:
    """The title of the derivation; the name of an op without one."""
    return next((one.title for one in derived.of(name)), name)


def all_pages() -> Iterator[tuple[Path, str]]:
    """(path, text) of each page."""
    for name in sorted(OPS):
        yield Path("ops") / f"{name}.md", OP_PAGE.format(title=title(name), name=name)
    for name in derivation.names():
        if name not in OPS:
            yield Path("derivations") / f"{name}.md", OTHER_PAGE.format(title=title(name), name=name)


def head(name: str) -> str:
    """What stands above the first step; of an op that is not derived, its docstring above Forward."""
    if name in derivation.names():
        return derivation.setting(name)
    return derivation.above_forward(inspect.cleandoc(str(OPS[name].__doc__)))


def write(target: Path, text: str) -> None:
    """Write a page, but only if it changes: Sphinx then reads only these again."""
    target.parent.mkdir(exist_ok=True)
    if not target.exists() or target.read_text("utf-8") != text:
        target.write_text(text, "utf-8")
