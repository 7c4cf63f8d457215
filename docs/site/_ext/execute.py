"""Run the notebooks in full, and keep their outputs for the site: `make notebooks`.

    python docs/site/_ext/execute.py             # writes docs/notebooks/NAME.json and build/notebooks/NAME.ipynb
    python docs/site/_ext/execute.py --check     # writes the latter alone; fails if a cell has other kinds of outputs

Figures are kept as SVG.  Warnings are errors.
"""
import json
import os
import re
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from notebook_pages import FOLDER, HTML, SVG, TEXT, code, digest, kept, kept_file, names, read
from places import ROOT

BUILT = ROOT / "build" / "notebooks"
OF_THE_KERNEL = ["--InlineBackend.figure_formats=svg", "--log-level=ERROR"]
SPECIFICATION = {"name": "python3", "display_name": "Python 3", "language": "python"}
SURROUNDINGS = {"MATPLOTLIBRC": str(FOLDER / "matplotlibrc"), "PYTHONPATH": str(ROOT),
                "PYTHONWARNINGS": "error::UserWarning"}
ABOUT_THE_FILE = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>\s*", re.DOTALL)
DIGITS = re.compile(r"(?<=\.\d\d)\d+(?=[^<>]*>)")              # of coordinates, not of texts


def executed(name: str) -> NotebookNode:
    """The notebook with the outputs of a run from beginning to end.  Raises an error that a cell raises."""
    notebook = read(name)
    notebook.metadata["kernelspec"] = SPECIFICATION
    NotebookClient(notebook, timeout=None, coalesce_streams=True, extra_arguments=OF_THE_KERNEL,
                   resources={"metadata": {"path": ROOT}}).execute()
    return notebook


def outputs(notebook: NotebookNode) -> list[list[dict[str, str]]]:
    """The outputs of each code cell, each as {kind: text}."""
    return [[dict([best(output)]) for output in cell.outputs] for cell in code(notebook)]


def best(output: NotebookNode) -> tuple[str, str]:
    """(kind, text) of the form of an output that a notebook shows.  Raises ValueError for what must not be there."""
    if output.output_type == "stream":
        if output.name == "stderr":
            raise ValueError(f"a cell wrote to standard error: {output.text}")
        return TEXT, output.text
    kind = next(kind for kind in (SVG, HTML, TEXT) if kind in output.data)
    return kind, small(output.data[kind]) if kind == SVG else output.data[kind]


def small(svg: str) -> str:
    """The <svg> without the time when it was drawn, to hundredths of a point."""
    return DIGITS.sub("", ABOUT_THE_FILE.sub("", svg))


def kinds(found: list[list[dict[str, str]]]) -> list[list[str]]:
    return [[kind for output in cell for kind in output] for cell in found]


def main(check: bool) -> int:
    os.environ.update(SURROUNDINGS)
    BUILT.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for name in names():
        began = time.perf_counter()
        notebook = executed(name)
        found = outputs(notebook)
        nbformat.write(notebook, BUILT / f"{name}.ipynb")
        if not check:
            text = json.dumps({"digest": digest(notebook), "outputs": found}, ensure_ascii=False, indent=1)
            kept_file(name).write_text(text + "\n", "utf-8")
        elif kinds(found) != kinds(kept(name)):
            print(f"{name}: a cell has other kinds of outputs than those that are kept; run make notebooks")
            wrong += 1
        print(f"{name}: {time.perf_counter() - began:.0f} s")
    return wrong


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
