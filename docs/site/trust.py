"""The table of what is proved, what is checked, and what is not, for every op."""
from pathlib import Path

import derived
from docutils import nodes
from messages import table, translated
from users import KERNELS, users

from pyllama.op import OPS
from pyllama.testing import catalogue

HEADINGS = "Op", "Proved (SymPy)", "Exact (complex step)", "Checked", "Kernels", "Bugs"
LANGUAGES = {".c": "C", ".cu": "CUDA"}
COUNTED = "proved", "exact", "checked"
UNDERIVED = "not derived step by step"


def trust_table(where: str, counted: bool) -> nodes.table:
    """counted: run the derivations and count their steps."""
    return table((translated(text, where) for text in HEADINGS), (row(name, where, counted) for name in sorted(OPS)),
                 "trust")


def row(name: str, where: str, counted: bool) -> list[nodes.Node]:
    link = nodes.reference("", name, refuri=f"ops/{name}.html", internal=True)
    kernels = ", ".join(LANGUAGES[Path(path).suffix] for path in users(name).get(KERNELS, [])) or "–"
    return [nodes.paragraph("", "", link), *steps(name, where, counted), plain(kernels),
            plain(len(catalogue.bugs(name)))]


def steps(name: str, where: str, counted: bool) -> list[nodes.Node]:
    """A cell for each kind of step."""
    if not derived.of(name) or not counted:
        return [translated(UNDERIVED, where), plain("–"), plain("–")]
    kinds = [step.kind for _, shown in derived.derived(name) for step in shown]
    return [plain(kinds.count(kind)) for kind in COUNTED]


def plain(text: str | int) -> nodes.paragraph:
    return nodes.paragraph("", str(text))
