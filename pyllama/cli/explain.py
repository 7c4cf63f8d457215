"""The command explain: one training step of a model, as a page on which every number can be followed."""
from pathlib import Path

from rich.progress import Progress

from pyllama.cli.output import console
from pyllama.errors import UserError
from pyllama.files import export
from pyllama.study.explain.page import explained

PICTURES = (".pdf", ".svg", ".png", ".jpg", ".webp")


def explain(model: Path, /, text: str, out: Path, text_pair: str | None = None, label: str | None = None,
            target: str | None = None, step: int | None = None, nudge: tuple[str, ...] = (),
            tokenizer: Path | None = None) -> int:
    """Run one training step of a model on a text, and write a page that explains every number of it.

    The page is one HTML file that opens without a network.  It shows the graph of ops, forward and backward, step by
    step; each value with its gradient and the local products that the gradient is the sum of; what happens to the loss
    when a weight is nudged; gradient flow, attention, the loss per token or of a label, and the update.

    pyllama explain runs/demo --text "The for statement" --out step.html
    pyllama explain runs/reviews --text "a fine film" --label positive --out step.html

    Args:
        model: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        text: the batch of the step; of a model trained on a task, the first field of a row
        out: HTML file to write, at most 5 MB
        text_pair: the row's second field: the other text of a pair, or a question about the text
        label: the row's answer where it is a class or a number; of tags one for each word, between spaces
        target: the row's answer where it is a text, such as a translation
        step: explain the checkpoint of this step of a run (default: the latest)
        nudge: weights to nudge besides those with the largest gradients, such as "lm_head.weight[3,5]"
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
    """
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out is {out}, which cannot be a file; name a file in a folder that exists")
    if out.suffix.lower() in PICTURES:
        raise UserError(f"--out is {out}, but the page is HTML; give a name such as {out.with_suffix('.html').name}")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("nudging weights", total=None)
        page = explained(model, text, text_pair=text_pair, label=label, target=target, step=step,
                         nudge=nudge, tokenizer=tokenizer, say=console.print,
                         show=lambda done, total: bar.update(task, completed=done, total=total))
    export(out, [page])
    console.print(f"wrote {out} ({len(page) / 1e6:.1f} MB): open it in a browser")
    return 0
