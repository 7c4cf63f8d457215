"""The tables of the chapter on the kernels, read from their sources: the tiles of products, and what each op has."""
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from docutils.parsers.rst import Directive
from messages import html, table, translated
from places import ROOT

from pyllama.op import OPS

CPU, CUDA = ROOT / "csrc" / "cpu", ROOT / "csrc" / "cuda"
VECTORS = {"__AVX512F__": ("AVX-512", 32), "__AVX__": ("AVX2", 16), "": ("SSE2", 16)}      # condition: name, registers
FILES = {"linear": "gemm"}                                                                 # op: file of another name


# --- tiles of matrix products -----------------------------------------------------------------------------------------

class Tile(NamedTuple):
    """Of float32: rows of A and columns of B that meet in registers.

    used    registers of the tile, of a row of B and of a number of A
    """
    vectors: str
    rows: int
    columns: int
    used: int
    registers: int


def tiles() -> list[Tile]:
    """One for each instruction set.  Raises ValueError if tile.h does not say them, or if one does not fit."""
    text = (CPU / "tile.h").read_text("utf-8")
    found = re.findall(r"#(?:if defined|elif defined|else) ?(\w*)\nenum \{ WIDTH = (\d+), MR = (\d+), VECTORS = (\d+)",
                       text)
    if [condition for condition, *_ in found] != list(VECTORS):
        raise ValueError("csrc/cpu/tile.h does not have the sizes of a tile for each instruction set")
    made = [Tile(VECTORS[condition][0], int(rows), int(vectors) * int(width) // 4,
                 int(rows) * int(vectors) + int(vectors) + 1, VECTORS[condition][1])
            for condition, width, rows, vectors in found]
    if any(tile.used > tile.registers for tile in made):
        raise ValueError("csrc/cpu/tile.h has a tile that does not fit into the registers")
    return made


def longest() -> int:
    """The rows of a block of B.  Raises ValueError if tile.h does not say them."""
    found = re.search(r"\bLONGEST = (\d+)\b", (CPU / "tile.h").read_text("utf-8"))
    if found is None:
        raise ValueError("csrc/cpu/tile.h does not say LONGEST")
    return int(found[1])


class Tiles(Directive):
    """Sizes of tiles and panels, for each instruction set."""
    headings = "Instructions", "Tile", "Registers", "Products per load", "Panel of A"

    def run(self):
        where = self.state.document.current_source
        return [table(texts(self.headings, where), (self.row(tile) for tile in tiles()), "kernels")]

    def row(self, tile):
        loads = tile.rows * tile.columns / (tile.rows + tile.columns)
        panel = tile.rows * longest() * 4 / 1024
        return plain(tile.vectors, f"{tile.rows} × {tile.columns}", f"{tile.used} / {tile.registers}", f"{loads:.1f}",
                     f"{panel:.1f} KiB")


# --- what each op has -------------------------------------------------------------------------------------------------

def bound() -> dict[str, set[str]]:
    """language -> the names of the functions that call its kernels."""
    sources = {"C": CPU.glob("*.pxi"), "CUDA": (ROOT / "pyllama" / "cuda").glob("*.py")}
    return {language: {name for path in paths for name in re.findall(r"^def (\w+)\(", path.read_text("utf-8"), re.M)}
            for language, paths in sources.items()}


def note(name: str) -> str:
    """The first sentence of the comment on top of the op's C file, else of its CUDA file; "" if there is none."""
    paths = {"C": CPU / f"{FILES.get(name, name)}.c", "CUDA": CUDA / f"{name}.cu"}
    found = ((language, opening(path)) for language, path in paths.items() if path.exists())
    return next((f"{language}: {sentence}" for language, sentence in found if sentence), "")


def opening(path: Path) -> str:
    """The first sentence of the comment on top, behind the paragraph that names the derivation."""
    comment = re.match(r"/\*(.*?)\*/|((?://[^\n]*\n)+)", path.read_text("utf-8"), re.S)
    if comment is None:
        return ""
    lines = (re.sub(r"^ ?(\*|//) ?", "", line) for line in (comment[1] or comment[2]).splitlines())
    reference, _, rest = "\n".join(lines).partition("\n\n")
    text = rest or re.sub(r"^\s*See \S+ for the derivation\.", "", reference)
    sentence, *_ = re.split(r"(?<=\.)\s", text.strip(), maxsplit=1)
    return " ".join(sentence.removeprefix("(a) ").split())


class Kernels(Directive):
    """For each op: does it have a C and a CUDA kernel, may its gradient be added in place, and what the file says."""
    headings = "Op", "C", "CUDA", "Added in place", "The file says"

    def run(self):
        where = self.state.document.current_source
        functions = bound()
        return [table(texts(self.headings, where), (self.row(name, functions) for name in sorted(OPS)), "kernels")]

    def row(self, name, functions):
        link = nodes.reference("", name, refuri=f"ops/{name}.html", internal=True)
        into = [language for language, those in functions.items() if f"{name}_backward_into" in those]
        has = ("✓" if name in those else "–" for those in functions.values())
        said = f'<p lang="en">{escape(note(name))}</p>'
        return [nodes.paragraph("", "", link), *plain(*has, ", ".join(into) or "–"), html(said)]


def texts(headings, where):
    return (translated(text, where) for text in headings)


def plain(*cells: str) -> list[nodes.paragraph]:
    return [nodes.paragraph("", cell) for cell in cells]


def setup(app):
    for name, directive in {"tiles": Tiles, "kernels": Kernels}.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
