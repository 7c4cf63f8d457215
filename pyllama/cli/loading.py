"""A model and a text, read for a command: notes on the console, a progress bar."""
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.progress import Progress

from pyllama import memory, pretrained
from pyllama.cli.output import console
from pyllama.errors import UserError
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Tokens, prepare

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "float64", "bfloat16"]


def load(model: Path, tokenizer: Path | None, dtype: str = "float32",
         say: Callable[[str], None] = console.print, allow_nan: bool = False,
         base_dtype: str | None = None) -> tuple[pretrained.Model, Tokenizer]:
    """Load a model and its tokenizer, and `say` the notes.  Raises UserError if it has no tokenizer."""
    memory.install()
    loaded = pretrained.load(model, tokenizer, dtype, allow_nan=allow_nan, base_dtype=base_dtype)
    for note in loaded.notes:
        say(note)
    if loaded.tokenizer is None:
        raise UserError(f"{model} has no tokenizer; give one with --tokenizer")
    return loaded, loaded.tokenizer


def encode(sources, tokenizer: Tokenizer, folder: Path, field: str) -> Tokens:
    """prepare() with a progress bar: encode the sources into a token file in the folder."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding the text", total=None)
        return prepare(sources, tokenizer, folder, field,
                       lambda done, total: bar.update(task, completed=done, total=total))
