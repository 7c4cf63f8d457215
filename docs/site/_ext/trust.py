"""What is proved, what is checked, and what is not: of every op, and of one on its own page."""
from collections.abc import Iterable
from pathlib import Path

import broken
import derived
from docutils import nodes
from kept import keep
from messages import plain, table, translated
from users import KERNELS, users

from pyllama import backend
from pyllama.op import OPS
from pyllama.testing import catalogue, check

HEADINGS = "Op", "Proved (SymPy)", "Exact (complex step)", "Checked", "Kernels", "Bugs found"
LANGUAGES = {".c": "C", ".cu": "CUDA"}
COUNTED = "proved", "exact", "checked"
UNDERIVED = "not derived step by step"
PROBLEMS = 20


def trust_table(where: str, names: Iterable[str], counted: bool, linked: bool = True) -> nodes.table:
    """A row for each op.  counted: run the derivations and checks, and count what they show; linked: name the ops."""
    first = 0 if linked else 1
    rows = [row(name, where, counted)[first:] for name in names]
    return table((translated(text, where) for text in HEADINGS[first:]), rows, "trust")


def row(name: str, where: str, counted: bool) -> list[nodes.Node]:
    link = nodes.reference("", name, refuri=f"ops/{name}.html", internal=True)
    return [nodes.paragraph("", "", link), *steps(name, where, counted),
            plain(kernels(name, counted)), plain(bugs_found(name) if counted else "–")]


def steps(name: str, where: str, counted: bool) -> list[nodes.Node]:
    """A cell for each kind of step."""
    if not derived.of(name) or not counted:
        return [translated(UNDERIVED, where), plain("–"), plain("–")]
    kinds = [step.kind for _, shown in derived.derived(name) for step in shown]
    return [plain(kinds.count(kind)) for kind in COUNTED]


def kernels(name: str, counted: bool) -> str:
    """The languages of its kernels; a check mark behind the one whose gradients were checked by this build."""
    languages = [LANGUAGES[Path(path).suffix] for path in users(name).get(KERNELS, [])]
    if counted and "C" in languages and backend.cpu:
        keep(f"kernel of {name}", lambda: checked_kernel(name))
        languages[languages.index("C")] = "C ✓"
    return ", ".join(languages) or "–"


def checked_kernel(name: str) -> str:
    """Raises ValueError if a gradient of the C kernel is wrong."""
    with backend.use("cpu"):
        report = check(OPS[name], problems=PROBLEMS)
    if not report:
        raise ValueError(f"the C kernel of {name} is wrong: {report}")
    return "checked"


def bugs_found(name: str) -> str:
    """How many of the catalogued bugs the checker finds.  Raises ValueError if it misses one."""
    bugs = catalogue.bugs(name)
    for bug in bugs:
        broken.complaint(bug)
    return f"{len(bugs)} / {len(bugs)}"
