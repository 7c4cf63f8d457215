"""The commands finetune and predict; their flags are their parameters and the fields of their dataclasses."""
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE
from rich.table import Table

from pyllama import files, memory
from pyllama.beam import SearchConfig
from pyllama.cli.display import announce, console
from pyllama.cli.running import check_log_steps, require_new, show_end, show_run
from pyllama.errors import UserError, optional
from pyllama.tasks import finetune as tuning
from pyllama.tasks.finetune import Setup
from pyllama.tasks.rows import BadRow, Row, Source, read, texts_of
from pyllama.training.loop import Settings
from pyllama.training.run import BestSoFar, RunPolicy, run

SHOWN = 5                                                   # rows of the table of examples
WIDE = 5                                                    # classes whose names fit side by side


def finetune(task: str, source: Source, setup: Setup, settings: Settings, policy: RunPolicy, search: SearchConfig,
             out_dir: Path = Path("out"), log_steps: int = 50) -> int:
    """Train a model on a task, from a trained model or from scratch, and measure its best checkpoint.

    Args:
        task: The name of a task; see `pyllama tasks`.
        out_dir: Folder of the run: checkpoints, log, rows, metrics.json.
        log_steps: Steps between lines where there is no terminal to draw on.
    """
    check_log_steps(log_steps)
    for name, value, usual in (("block_size", settings.block_size, Settings.block_size),
                               ("eval_tokens", policy.eval_tokens, RunPolicy.eval_tokens)):
        if value != usual:
            raise UserError(f"{name} is for texts and has no effect on rows; leave it out (max_length cuts a long row)")
    require_new(out_dir)
    memory.install()
    definition = tuning.task_of(task)
    for module in definition.packages:
        optional(module, f"the task {task}")
    state, tokenizer, parts, notes = tuning.prepare(definition, source, setup, settings)
    model = tuning.trained(state.config, state.p, tokenizer)
    parts, room_notes = tuning.with_room(definition, parts, model, tuning.length_limit(setup, model))
    for note in (*notes, *room_notes):
        console.print(note)
    tuning.save_rows(parts, out_dir / "data")
    paths = {name: str(value) if (value := getattr(setup, name)) else None
             for name in ("test_data", "tokenizer", "vectors")}
    about = {"task": task, "setup": asdict(setup) | paths, "search": asdict(search)}
    examples = tuning.examples(definition, parts, state, tokenizer)
    settings = setup.planned(settings, len(examples["train"]))
    return train(definition, out_dir, state, tokenizer, parts, examples, settings, policy, about, BestSoFar(), search,
                 log_steps)


def resume(run_folder: Path, saved, settings: Settings, policy: RunPolicy, tokenizer, best_so_far, log_steps) -> int:
    """Go on with a run of finetune."""
    about = saved.trainer["about"]
    task = tuning.task_of(about["task"])
    state, parts = tuning.resumed(saved, settings), tuning.load_rows(run_folder / "data")
    examples = tuning.examples(task, parts, state, tokenizer)
    search = SearchConfig(**about["search"])
    return train(task, run_folder, state, tokenizer, parts, examples, settings, policy, about, best_so_far, search,
                 log_steps)


def train(task, folder, state, tokenizer, parts, examples, settings, policy, about, best_so_far, search,
          log_steps) -> int:
    """Train while showing it, then measure; 0 when done, 130 when Ctrl-C stopped it."""
    announce(f"{state.flat.size:,} parameters; {len(parts['train']):,} rows to train on, {len(parts['dev']):,} to "
             f"validate on, {len(parts['test']):,} to test on; steps {state.step} to {settings.max_steps} in {folder}")
    events = run(folder, state, examples["train"], examples["dev"], settings, policy, about,
                 tokenizer.rust.to_str(pretty=True), best_so_far, tuning.evaluation(task, parts["dev"], tokenizer))
    if show_run(events, state, settings.max_steps, log_steps):
        return show_end(f"stopped at step {state.step}", stopped_in=folder)
    _, model, _ = tuning.load(folder, settings.dtype)
    part = "test" if parts["test"] else "dev"
    for note in task.notes(parts[part], model, search):
        console.print(note)
    answers, metrics = tuning.measure(task, parts[part], model, search)
    result = {"task": task.name, "rows": part, "step": best_so_far.best_step, **metrics}
    files.export(folder / "metrics.json", [files.to_json(result)])
    show(task, parts[part], answers, metrics)
    if state.step < settings.max_steps:
        console.print(f"out of patience at step {state.step}: the last {best_so_far.stale} evaluations on the dev rows "
                      f"were no better than that of step {best_so_far.best_step}")
    return show_end(f"measured on the {part} rows at step {best_so_far.best_step}, the best on the dev rows",
                    then=f"try `pyllama predict --model {folder}`")


def predict(model: Path, search: SearchConfig, data: Path | None = None, text: tuple[str, ...] = (),
            out: Path | None = None, export: Path | None = None, fields: tuple[str, ...] = (),
            bad_rows: Literal["fatal", "skip"] = "fatal") -> int:
    """Answers of a model that was trained on a task, a line each: as JSON for a file of rows, as text for texts.

    Args:
        model: A run of finetune, or one of its checkpoints.
        data: A .jsonl, .json, .csv or .tsv file; only what the answer depends on need be there.
        text: Texts instead of a file.
        out: The file to write; None: standard output.
        export: A file for what the answers tell together: the triples of relations, as .csv, .graphml or .ttl, or
            drawn as .png.
        fields: The fields to read, in the task's order, with or without the answer's; none: those it was trained on.
        bad_rows: What to do about a row that cannot be used: stop, or leave it out.
    """
    if bool(data) == bool(text):
        raise UserError("predict needs --data FILE or --text TEXT, one of them")
    memory.install()
    task, trained, notes = tuning.load(model)
    exported = task.export(export) if export else None
    asked_fields = task.fields[:-1]
    usable = task.askable or (lambda values: texts_of(values, asked_fields, task.optional_fields))
    if data:
        source = Source(data, fields or fields_of_training(trained), bad_rows)
        rows, row_notes = read(source, task.fields, usable, task.readers, answer=False)
        notes += row_notes
    else:
        rows = rows_of_texts(task.name, asked_fields, usable, text)
    for note in (*notes, *task.notes(rows, trained, search)):
        print(note, file=sys.stderr)                        # the answers go to standard output
    answers = task.predict(rows, trained, search)
    if text:
        lines = answers
    else:
        lines = [json.dumps({**row.values, task.fields[-1]: answer}, ensure_ascii=False)
                 for row, answer in zip(rows, answers, strict=True)]
    if out:
        files.export(out, ["".join(line + "\n" for line in lines).encode()])
        console.print(f"wrote {len(lines):,} lines to {out}")
    else:
        sys.stdout.writelines(line + "\n" for line in lines)
    if export and exported:
        content, description = exported(rows, answers)
        files.export(export, [content])
        print(f"wrote {description} to {export}", file=sys.stderr)
    return 0


def fields_of_training(trained) -> tuple[str, ...]:
    """The names that the fields had in the rows a model was trained on."""
    return tuple(trained.config.extra["task"].get("fields", ()))


def rows_of_texts(task_name, asked_fields, usable, texts) -> list[Row]:
    """Rows of the texts on the command line."""
    if len(asked_fields) > 1:
        raise UserError(f"{task_name} reads {' and '.join(asked_fields)} of each row, and --text gives one text alone; "
                        f"give rows with --data")
    try:
        return [Row(f"text {i}", usable({asked_fields[0]: text})) for i, text in enumerate(texts, 1)]
    except BadRow as error:
        raise UserError(f"a --text cannot be used: {error}; fix it") from None


def show(task, rows, answers, metrics) -> None:
    """Print the numbers, and the confusion matrix or the first answers."""
    names = metrics.get("labels", [])
    for name, value in metrics.items():
        if isinstance(value, float):
            console.print(f"{name:20}{value:.4f}")
        elif name not in ("labels", "confusion"):
            console.print(f"{name:20}{value}")
    if names:
        heads = names if len(names) <= WIDE else list(map(str, range(1, len(names) + 1)))
        table = Table("true \\ predicted", *heads, box=SIMPLE)
        for head, name, counts in zip(heads, names, metrics["confusion"], strict=True):
            table.add_row(name if head is name else f"{head} {name}", *map(str, counts))
    else:
        table = Table(*task.fields, "predicted", box=SIMPLE)
        for row, answer in zip(rows[:SHOWN], answers, strict=False):
            table.add_row(*(str(row.values[name])[:60] for name in task.fields), answer[:60])
    console.print(table)
