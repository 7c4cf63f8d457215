"""The command report: readability and repetition of texts."""
import json
from collections.abc import Callable
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from pyllama.cli.output import console, visible
from pyllama.errors import UserError
from pyllama.files import export
from pyllama.tasks.answers import FORMATS
from pyllama.text import corpus
from pyllama.text.readability import measures

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv")             # of files with a row for each source
SHOWN = 120                                                 # characters of a repeated phrase in the table


def report(data: tuple[str, ...] = ("-",), /, field: str = "text", out: Path | None = None) -> int:
    """Measure the readability and repetition of texts.

    The measures are sentences, reading ease, distinct n-grams and repeated phrases.

    Args:
        data: files, folders, patterns, "-" or "python-docs", one column each (default: standard input)
        field: field of a .jsonl file that holds the text
        out: file for the measures, with repeated phrases in full: .json or, with a row for each of `data`, .jsonl,
            .csv or .tsv
    """
    write = in_full if out is None or out.suffix.lower() in ("", ".json", ".txt") else by_row(out)
    measured = {source: measures([text for _, text in corpus.documents(source, field)]) for source in data}
    table = Table("", box=SIMPLE)
    for source in measured:
        table.add_column(Text(visible(source)), overflow="fold")             # Chinese has no spaces to break at
    for name in next(iter(measured.values())):
        table.add_row(name.replace("_", " "), *(shown(values[name]) for values in measured.values()))
    console.print(table, soft_wrap=False)
    if out:
        export(out, [write(measured).encode("utf-8", "backslashreplace")])
    return 0


def in_full(measured: dict[str, dict]) -> str:
    """The measures of each source as JSON."""
    return json.dumps(measured, indent=2, ensure_ascii=False) + "\n"


def by_row(path: Path) -> Callable[[dict[str, dict]], str]:
    """A function that writes a row for each source, by the path's ending.  Raises UserError for an unknown one."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"measures cannot be written as {path.suffix}; name a file with the ending .json, "
                        f"{', '.join(ENDINGS)}")
    write = FORMATS[path.suffix.lower()]
    return lambda measured: write([{"data": source, **values} for source, values in measured.items()])


def shown(value) -> str:
    """A measure as a cell of the table."""
    if isinstance(value, list):
        return "\n".join(f"{count:,} × {shortened(text)}" for text, count in value)
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    return shortened(value or "")


def shortened(text: str) -> str:
    """The beginning and the end of a long text: one that stands twice repeats all of itself."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN * 2 // 3]} ... {text[-SHOWN // 3:]}"
