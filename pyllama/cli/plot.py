"""The command plot: pictures of runs and of models, in the terminal or as a file."""
import sys
from collections.abc import Sequence
from pathlib import Path

from pyllama import memory
from pyllama.cli import figures, printed
from pyllama.cli.curves import panels
from pyllama.cli.output import console, emit, note
from pyllama.errors import UserError
from pyllama.study.attention_maps import attention_maps, chosen
from pyllama.study.gradient_flow import gradient_flow


def plot(runs: tuple[Path, ...], /, out: Path | None = None, attention: bool = False, gradients: bool = False,
         text: str | None = None, layer: int | None = None, head: int | None = None,
         tokenizer: Path | None = None) -> int:
    """Plot the loss, learning rate, gradient norm and speed of runs, or how a model reads a text.

    Without --out, the picture is printed, and the curves of runs are also written to curves.png in the first of them.
    In a file, letters have 8 points, and the picture the width of a column or page; an .svg has its text as text.

    pyllama plot runs/demo --attention --text "The for statement" --out maps.svg

    Args:
        runs: folders of runs; for attention and gradients, a model
        out: file to write: .svg, .pdf, .png or another image
        attention: draw the attention weights of each layer and head
        gradients: draw the norms of each parameter's gradient, and count the units without one; the loss is that of
          training on text, or that of a classifier's own answer
        text: text that the model reads
        layer: draw the attention of this layer alone
        head: draw the attention of this head alone
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
    """
    check_flags(runs, attention, gradients, {"text": text, "layer": layer, "head": head, "tokenizer": tokenizer})
    if out:
        figures.check(out)
    memory.install()
    if attention:
        return plot_attention(runs[0], text or "", out, layer, head, tokenizer)
    if gradients:
        return plot_gradients(runs[0], text or "", out, tokenizer)
    return plot_curves(runs, out)


def check_flags(runs: Sequence[Path], attention: bool, gradients: bool, others: dict) -> None:
    """Raise UserError if flags do not go together."""
    if attention and gradients:
        raise UserError("attention and gradients are two pictures; ask for one of them")
    kind = "attention" if attention else "gradients" if gradients else ""
    needless = [name for name, value in others.items()
                if value is not None and (not kind or (gradients and name in ("layer", "head")))]
    if needless:
        raise UserError(f"{needless[0]} has no effect {'on gradients' if kind else 'without attention or gradients'}; "
                        f"remove it")
    if kind and len(runs) > 1:
        raise UserError(f"{kind} shows one model, not {len(runs)}; give one")
    if kind and others["text"] is None:
        raise UserError(f"{kind} needs a text that the model reads; give one with --text")


def plot_curves(runs: Sequence[Path], out: Path | None) -> int:
    """Draw the curves of runs."""
    found = panels(runs)
    if out:
        return written(out, figures.write(out, figures.draw_curves(found)))
    show(printed.curves(found, console.width))
    path = runs[0] / "curves.png"
    try:
        return written(path, figures.write(path, figures.draw_curves(found)))
    except UserError as error:                              # the picture was shown
        note(f"{path} was not written: {error}")
        return 0


def plot_attention(model: Path, text: str, out: Path | None, layer: int | None, head: int | None,
                   tokenizer: Path | None) -> int:
    """Draw the attention of a model."""
    every, notes = attention_maps(model, text, tokenizer)
    found = chosen(every, layer, head)
    heads = range(max(len(one.p) for one in found)) if head is None else [head]
    tell(notes, out)
    if out:
        return written(out, figures.write(out, figures.draw_maps(found, heads)))
    show(printed.maps(found, heads, console.width if sys.stdout.isatty() else None))
    return 0


def plot_gradients(model: Path, text: str, out: Path | None, tokenizer: Path | None) -> int:
    """Draw the gradient flow of a model."""
    flow, notes = gradient_flow(model, text, tokenizer)
    tell(notes, out)
    if out:
        return written(out, figures.write(out, figures.draw_flow(flow)))
    show(printed.flow(flow))
    return 0


def tell(notes: Sequence[str], out: Path | None) -> None:
    """Print the notes, on standard error where the picture goes to standard output."""
    for sentence in notes:
        (console.print if out else note)(sentence)


def show(lines: Sequence[str]) -> None:
    """Print a picture."""
    emit("\n".join(lines))


def written(path: Path, notes: Sequence[str]) -> int:
    """Say that the file was written, on standard error if that is standard output; returns 0."""
    for sentence in (*notes, f"wrote {path}"):
        (note if str(path) == "-" else console.print)(sentence)
    return 0
