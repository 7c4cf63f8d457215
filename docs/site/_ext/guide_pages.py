"""The guides: the pages of docs/ as they are, with links that lead to their places on the site."""
import re
from collections.abc import Iterator
from pathlib import Path

from places import ROOT
from sources import SCHEME

DOCS = ROOT / "docs"
RETOLD = {"textbook": "../textbook.md"}                     # chapters of the site
FIRST = ("training", "lora", "parameters", "sharing", "bfloat16", "tasks", "distillation", "pruning", "generation",
         "plan", "python", "commands", "testing", "verify", "vectors", "checkers", "explain", "gpu", "raspberry",
         "conventions", "architecture")
LINK = re.compile(r"(!?)\[([^][]+)\]\(([^()\s#]+)(#[^()\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def names() -> list[str]:
    """All guides in the order in which they are read."""
    found = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in RETOLD)
    return sorted(found, key=[*FIRST, *found].index)


def all_pages() -> Iterator[tuple[Path, str]]:
    """(path, text) of each guide."""
    for name in names():
        yield Path("guides") / f"{name}.md", of_site((DOCS / f"{name}.md").read_text("utf-8"))


def of_site(text: str) -> str:
    """The text of a page of docs/ with links for the site; code stays as it is."""
    return "".join(part if k % 2 else LINK.sub(moved, part) for k, part in enumerate(FENCED.split(text)))


def moved(link: re.Match) -> str:
    """The link to a guide, a chapter or the page of a file; of a folder, its text alone."""
    image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
    path = (DOCS / target).resolve()
    of_docs = path.parent == DOCS and path.suffix == ".md"
    if of_docs and path.stem in RETOLD:
        return f"[{text}]({RETOLD[path.stem]}{anchor})"
    if of_docs or "://" in target:
        return link[0]
    if image:
        return f"![{text}](../../{target})"
    if path.is_file():
        return f"[{text}]({SCHEME}{path.relative_to(ROOT).as_posix()})"
    return text
