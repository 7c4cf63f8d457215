"""The command quantize: a model with weights of few bits, in a file of llama.cpp."""
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rich.progress import Progress

from pyllama.cli.loading import encode, load
from pyllama.cli.output import console
from pyllama.errors import UserError, counted
from pyllama.formats import model_file
from pyllama.pretrained import Model
from pyllama.quantization import decoded_tree, encoded_tree, plain
from pyllama.quantization.blocks import LEVELS
from pyllama.quantization.calibration import calibrated_tree
from pyllama.quantization.report import changes, lines
from pyllama.quantization.sample import Sample, sampled
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import loop

HELD_OUT = 0.2                                              # the share of the text on which the report is
EVALUATED = 2**16                                           # tokens of it, at most


def quantize(src: Path, dst: Path, /, dtype: Literal["q8_0", "q4_0", "f16", "bf16"] = "q8_0",
             data: tuple[str, ...] = (), field: str = "text", tokenizer: Path | None = None, report: bool = False,
             padded: bool = False, force: bool = False) -> int:
    """Store a model's weights in few bits, as a GGUF file for pyllama and llama.cpp.

    With a text, the weights are rounded so that what the model computes on it changes little (GPTQ); without one, each
    number is rounded to the nearest.  Norms and biases stay float32.

    Args:
        src: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        dst: file to write, NAME.gguf
        dtype: bits of a number: q8_0 8.5, q4_0 4.5, f16 and bf16 16
        data: text to calibrate with: files, folders, patterns, "-" or "python-docs"
        field: field of a .jsonl file that holds the text
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
        report: print the error of each matrix; with data, also of its products, and the perplexity before and after, on
          a fifth of the text, which calibration then does not see
        padded: write zeros where the layers of a pruned model lack heads or channels, because the file has equal layers
        force: replace dst if it exists
    """
    refuse_names(src, dst)
    if data and dtype not in LEVELS and not report:
        raise UserError(f"data has no effect on {dtype}, which is not calibrated; remove it, or add --report")
    model, its_tokenizer = load(src, tokenizer)
    model = model.expanded()                                    # each layer is rounded for what it reads
    model = model.padded() if padded else model
    model_file.require_writable(dst, model.config, its_tokenizer, force)
    tree = plain(model.params, dtype)
    with sample_of(data, its_tokenizer, model, field, HELD_OUT if report else 0.0) as sample:
        stored = calibrated(tree, model, dtype, sample) if sample else encoded_tree(tree, dtype, model.config)
        if report:
            show(tree, stored, model, sample)
    for note in model_file.write(dst, model.config, stored, its_tokenizer, force):
        console.print(note)
    console.print(f"wrote {dst}: {dst.stat().st_size:,} bytes")
    return 0


def refuse_names(src: Path, dst: Path) -> None:
    """Raise UserError if a file of this name is not one to write."""
    if dst.suffix.lower() != model_file.SUFFIX:
        raise UserError(f"{dst} would be a GGUF file; give it a name that ends in {model_file.SUFFIX}")
    if src.exists() and dst.exists() and os.path.samefile(src, dst):
        raise UserError(f"{src} and {dst} are the same file, and the original is never replaced; give another name")


@contextlib.contextmanager
def sample_of(data: tuple[str, ...], tokenizer: Tokenizer, model: Model, field: str, held_out: float
              ) -> Iterator[Sample | None]:
    """The sample of a text, whose tokens are in a temporary file; None without a text."""
    with tempfile.TemporaryDirectory() as folder:
        yield sampled(encode(data, tokenizer, Path(folder), field), tokenizer, model.config, held_out) if data else None


def calibrated(tree: dict, model: Model, dtype: str, sample: Sample) -> dict:
    """calibrated_tree() with a progress bar."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rounding matrices", total=None)
        return calibrated_tree(tree, model.config, dtype, sample.rows,
                               progress=lambda done, total: bar.update(task, completed=done, total=total))


def show(tree: dict, stored: dict, model: Model, sample: Sample | None) -> None:
    """Print the report."""
    for line in lines(changes(tree, stored, model.config, sample.rows if sample else None)):
        console.print(line)
    if sample is None:
        console.print("with --data TEXT, the report has the errors of the products and the perplexity")
        return
    before, after = (evaluated(each, model, sample) for each in (tree, decoded_tree(stored)))
    console.print(f"perplexity {before.perplexity:.4g} before, {after.perplexity:.4g} after: "
                  f"{after.perplexity / before.perplexity - 1:+.2%}, over {counted(before.tokens, 'token')} held out")


def evaluated(tree: dict, model: Model, sample: Sample) -> loop.Evaluation:
    """Loss and perplexity on the tokens that are held out."""
    settings = loop.Settings(block_size=sample.window)
    state = loop.start(model.config, settings, tree)
    return loop.evaluate(state, sample.held_out, settings, EVALUATED, sample.cut.windows)
