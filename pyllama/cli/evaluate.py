"""The command evaluate: the loss of a model on a text, or the metrics of a model that was trained on a task."""
import tempfile
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal

from pyllama import files, memory
from pyllama.beam import SearchConfig
from pyllama.cli.display import console
from pyllama.cli.tasks import fields_of_training, show
from pyllama.cli.text import Device, encode, load
from pyllama.device import like as on
from pyllama.errors import UserError
from pyllama.tasks import finetune
from pyllama.tasks.rows import Source, read
from pyllama.training import objectives
from pyllama.training.loop import Settings, start


def evaluate(model: Path, data: tuple[str, ...], search: SearchConfig, out: Path | None = None, field: str = "text",
             block_size: int | None = None, tokenizer: Path | None = None, device: Device = "cpu",
             fields: tuple[str, ...] = (), bad_rows: Literal["fatal", "skip"] = "fatal") -> int:
    """Loss, perplexity and next-token accuracy on a text; the task's metrics if the model was trained on one.

    Args:
        model: A run, a checkpoint, a Hugging Face folder or a llama2.c file.
        data: Of a text: files, folders, patterns, "-" or "python-docs". Of a task: one .jsonl, .json, .csv or .tsv.
        out: A file for the metrics, as JSON.
        field: Text: the field of a .jsonl file that holds it.
        block_size: Text: tokens in a window; None: the model's context length.
        tokenizer: Text: a tokenizer.json, or a llama2.c tokenizer, to use instead of the model's own.
        device: Text: where to compute.
        fields: Task: the fields to read, in the task's order; none: those it was trained on.
        bad_rows: Task: what to do about a row that cannot be used: stop, or leave it out.
    """
    like = on(device)                                       # first: is there a GPU?
    if finetune.holds_task(model):
        refuse("on a task", field=field != "text", block_size=block_size, tokenizer=tokenizer,
               device=device != "cpu")
        if len(data) != 1:
            raise UserError(f"a task is evaluated on the rows of one file, but data names {len(data)}; name one")
        metrics = of_task(model, Source(Path(data[0]), fields, bad_rows), search)
    else:
        changed = {f.name: getattr(search, f.name) != f.default for f in fields_of(SearchConfig)}
        refuse("on a text", fields=fields, bad_rows=bad_rows != "fatal", **changed)
        metrics = of_text(model, data, field, block_size, tokenizer, like)
    if out:
        files.export(out, [files.to_json(metrics)])
    return 0


def refuse(kind: str, **flags: Any) -> None:
    """Raises UserError for the first flag that is given though it has no effect."""
    for name, given in flags.items():
        if given:
            raise UserError(f"{name} has no effect on the evaluation of a model that was trained {kind}; leave it out")


def of_text(model: Path, data, field: str, block_size: int | None, tokenizer: Path | None, like) -> dict:
    """Evaluate on the documents of the sources, and print the result."""
    pretrained, tokenizer_of_model = load(model, tokenizer)
    objective = objectives.objective_of(pretrained.config, tokenizer_of_model)
    context = pretrained.config.max_position_embeddings
    settings = Settings(block_size=context if block_size is None else block_size)
    if settings.block_size > context:
        raise UserError(f"block_size is {block_size}, but {model} sees {context} tokens; make it smaller")
    state = start(pretrained.config, settings, pretrained.params, like)
    with tempfile.TemporaryDirectory() as folder:
        tokens = encode(data, tokenizer_of_model, Path(folder), field)
        result = objective.evaluate(state, objective.source(tokens), settings)
    console.print(f"loss {result.loss:.4f} nats per token   {result}   over {result.tokens:,} tokens")
    return result._asdict()


def of_task(model: Path, source: Source, search: SearchConfig) -> dict:
    """Evaluate on the rows of the file, and print the result."""
    memory.install()
    task, trained, notes = finetune.load(model)
    source = Source(source.data, source.fields or fields_of_training(trained), source.bad_rows)
    rows, row_notes = read(source, task.fields, task.usable, task.readers)
    limit = f"the {trained.max_length} tokens that the model was trained to read"
    parts, room_notes = finetune.with_room(task, {"given": rows}, trained, limit)
    rows = parts["given"]
    for note in (*notes, *row_notes, *room_notes, *task.notes(rows, trained, search)):
        console.print(note)
    answers, metrics = finetune.measure(task, rows, trained, search)
    show(task, rows, answers, metrics)
    return {"task": task.name, **metrics}
