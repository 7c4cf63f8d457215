"""The command evaluate: the loss of a model on text, or the metrics of a model that was trained on a task."""
import tempfile
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal

from pyllama import files, memory
from pyllama.cli.loading import Device, Precision, encode, load
from pyllama.cli.output import console
from pyllama.cli.tasks import fields_of_training, show
from pyllama.device import like as on
from pyllama.errors import UserError, counted
from pyllama.generation import SearchConfig
from pyllama.tasks import finetune, foreign
from pyllama.tasks.readable import readable
from pyllama.tasks.rows import Source
from pyllama.tasks.task import learned_limit
from pyllama.text import special
from pyllama.text.cuts import cut_for
from pyllama.text.tokens import token_file
from pyllama.training import loop, objectives
from pyllama.training.loop import Settings, start

ROWS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv"}       # of other files a model that continues texts has the loss


def evaluate(model: Path, data: tuple[str, ...], search: SearchConfig, out: Path | None = None, field: str = "text",
             block_size: int | None = None, tokenizer: Path | None = None, device: Device = "cpu",
             packing: bool = False, fields: tuple[str, ...] = (), bad_rows: Literal["fatal", "skip"] = "fatal",
             dtype: Precision = "float32", allow_nan: bool = False) -> int:
    """Evaluate a model: its loss on text, or the metrics of the task it was trained on.

    On text: loss, perplexity and next-token accuracy.

    Args:
        model: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        data: text: files, folders, patterns, "-", "python-docs" or a .bin of tokens; task: one .jsonl, .json, .csv
          or .tsv file
        out: JSON file to write the metrics to
        field: field of a .jsonl file that holds the text
        block_size: window in tokens (default: the model's context length)
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
        device: the CPU, or a GPU through CuPy (text only)
        packing: keep the documents of a window apart, as `train --packing` does
        fields: fields to read, in the task's order (default: those of the training rows)
        bad_rows: on an invalid row, stop or skip the row
        dtype: precision of the computation; with bfloat16 the matrices of the model are rounded to it
        allow_nan: accept weights that are NaN or infinite
    """
    like = on(device, dtype)                                # first: a missing GPU is an error before any work
    task = finetune.stored_task(model)
    on_text = task is None or (task.head == "lm" and not any(Path(name).suffix.lower() in ROWS for name in data))
    if not on_text:
        refuse("on a task", field=field != "text", block_size=block_size, tokenizer=tokenizer, packing=packing,
               device=device != "cpu")
        if len(data) != 1:
            raise UserError(f"a task is evaluated on one file of rows, but data names {len(data)}; give one file")
        metrics = of_task(model, Source(Path(data[0]), fields, bad_rows), search, dtype, allow_nan)
    else:
        changed = {f.name: getattr(search, f.name) != f.default for f in fields_of(SearchConfig)}
        refuse("on text", fields=fields, bad_rows=bad_rows != "fatal", **changed)
        metrics = of_text(model, data, field, block_size, tokenizer, like, packing, dtype, allow_nan)
    if out:
        files.export(out, [files.to_json(metrics)])
    return 0


def refuse(kind: str, **flags: Any) -> None:
    """Raise UserError for the first flag that is set although it has no effect.  kind: "on text" or "on a task"."""
    for name, is_set in flags.items():
        if is_set:
            raise UserError(f"{name} has no effect on a model that was trained {kind}; remove it")


def of_text(model: Path, data, field: str, block_size: int | None, tokenizer: Path | None, like,
            packing: bool = False, dtype: Precision = "float32", allow_nan: bool = False) -> dict:
    """Evaluate on text, print the result and return it: loss in nats per token, perplexity, accuracy, tokens."""
    kept = "float32" if dtype == "bfloat16" else dtype      # the weights, which the evaluation rounds itself
    pretrained, tokenizer_of_model = load(model, tokenizer, kept, allow_nan=allow_nan)
    objective = objectives.objective_of(pretrained.config, tokenizer_of_model)
    context = pretrained.config.context
    settings = Settings(block_size=context if block_size is None else block_size, packing=packing, dtype=dtype)
    objectives.check_packing(pretrained.config, settings)
    if settings.block_size > context:
        raise UserError(f"block_size is {block_size}, but {model} has a context of {context} tokens; reduce it")
    state = start(pretrained.config, settings, pretrained.params, like)
    with tempfile.TemporaryDirectory() as folder:
        frame, of_ids = special.frame(tokenizer_of_model), len(data) == 1 and data[0].endswith(".bin")
        tokens = token_file(Path(data[0]), tokenizer_of_model.vocab_size, tokenizer_of_model.hash) if of_ids else \
            encode(data, tokenizer_of_model, Path(folder), field)
        if of_ids and packing and len(tokens.starts) == 1 and tokenizer_of_model.eos_id is not None:
            tokens = tokens.ending_with(tokenizer_of_model.eos_id)
        if of_ids and len(tokens.starts) == 1:
            frame = frame._replace(before=[], behind=[])            # the file says nothing about its documents
        if packing:
            result = loop.evaluate(state, tokens, settings)
            words = f"documents packed into windows of {settings.block_size:,} tokens, each by itself, {frame.words}"
        elif objectives.continues(pretrained.config):
            cut = cut_for(tokens, frame, settings.block_size)
            result, words = loop.evaluate(state, tokens, settings, cut=cut.windows), cut.words
        else:
            result, words = objective.evaluate(state, objective.source(tokens), settings), frame.words
    console.print(f"loss {result.loss:.4f} nats per token   {result}   over {counted(result.tokens, 'token')}")
    console.print(words)
    return result._asdict()


def of_task(model: Path, source: Source, search: SearchConfig, dtype: Precision = "float32",
            allow_nan: bool = False) -> dict:
    """Evaluate on the rows of a file, print the metrics and return them."""
    memory.install()
    task, trained, notes = finetune.load(model, dtype, allow_nan)
    source = Source(source.data, source.fields or fields_of_training(trained), source.bad_rows)
    rows, row_notes = task.read(source)
    rows = foreign.with_names(task, rows, trained.config)
    rows, unread_notes = readable(task, rows, trained, source.bad_rows)
    limit = learned_limit(trained)
    parts, room_notes = finetune.with_room(task, {"evaluation": rows}, trained, limit)
    rows = parts["evaluation"]
    too_long = task.truncated(rows, trained, limit)
    for note in (*notes, *row_notes, *unread_notes, *room_notes, *too_long, *task.notes(rows, trained, search)):
        console.print(note)
    answers, metrics = finetune.measure(task, rows, trained, search)
    show(task, rows, answers, metrics)
    return {"task": task.name, **metrics}
