"""All derivations as one page, docs/ops.html, from the registry of ops.     python docs/build.py"""
import html
from pathlib import Path

import pyllama.ops  # noqa: F401 -- registers
from pyllama.op import OPS

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>pyllama: the ops</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
  pre {{ font: 14px/1.45 ui-monospace, monospace; overflow-x: auto; background: #f6f6f4; padding: 1rem }}
  nav a {{ margin-right: 1em }}
</style>
<h1>The ops</h1>
<p>Each op has a forward pass and a backward pass derived from it by hand.  The text below is the docstring of
<code>pyllama/ops/NAME.py</code>; the code follows it in that file.  <code>pyllama/shapes.py</code> names the axes.</p>
<nav>{links}</nav>
{sections}
</html>
"""
SECTION = """<h2 id="{name}">{name}</h2>
<pre>{text}

Shapes      {shapes}
Backends    {backends}</pre>
"""


def page() -> str:
    ops = [OPS[name] for name in sorted(OPS)]
    return PAGE.format(
        links=" ".join(f'<a href="#{op.name}">{op.name}</a>' for op in ops),
        sections="\n".join(SECTION.format(name=op.name, text=html.escape(op.__doc__), shapes=html.escape(op.shapes),
                                          backends=", ".join(op.backends())) for op in ops))


if __name__ == "__main__":
    out = Path(__file__).with_name("ops.html")
    out.write_text(page(), encoding="utf-8")
    print(f"wrote {out}")
