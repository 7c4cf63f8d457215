"""The command report: how texts read and how much they repeat themselves."""
import json
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from pyllama.cli.display import console
from pyllama.files import export
from pyllama.text import corpus
from pyllama.text.readability import measures


def report(data: Positional[tuple[str, ...]] = ("-",), field: str = "text", out: Path | None = None) -> int:
    """How texts read and how much they repeat themselves: sentences, reading ease, distinct n-grams, repeated phrases.

    Args:
        data: Files, folders, patterns, "-" or "python-docs", a column each; nothing: standard input.
        field: The field of a .jsonl file that holds the text.
        out: A file for the measures, as JSON.
    """
    measured = {source: measures([text for _, text in corpus.documents(source, field)]) for source in data}
    table = Table("", box=SIMPLE)
    for source in measured:
        table.add_column(Text(source), overflow="fold")             # a Chinese phrase has no space to break at
    for name in next(iter(measured.values())):
        table.add_row(name.replace("_", " "), *(shown(values[name]) for values in measured.values()))
    console.print(table, soft_wrap=False)
    if out:
        export(out, [(json.dumps(measured, indent=2, ensure_ascii=False) + "\n").encode()])
    return 0


def shown(value) -> str:
    if isinstance(value, list):
        return "\n".join(f"{count:,} × {text}" for text, count in value)
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else \
        f"{value:,}" if isinstance(value, int) else value
