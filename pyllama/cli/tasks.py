"""The commands finetune and predict, whose signatures give the flags (see flags.py)."""
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE
from rich.table import Table

from pyllama import files, memory
from pyllama.cli import shares
from pyllama.cli.confusion import confusion_table
from pyllama.cli.display import announce, parameters_of
from pyllama.cli.output import console, emit, note, quoted
from pyllama.cli.running import check_log_steps, show_end, show_run, show_stop
from pyllama.errors import UserError, counted
from pyllama.generation import SearchConfig
from pyllama.study import deciding
from pyllama.study.deciding import Asked
from pyllama.tasks import answers, instruct
from pyllama.tasks import finetune as tuning
from pyllama.tasks.distill import resume_rows
from pyllama.tasks.finetune import Setup
from pyllama.tasks.readable import readable
from pyllama.tasks.rows import Source
from pyllama.tasks.task import learned_limit, rows_of
from pyllama.training.adapting import Adapting
from pyllama.training.loop import Settings
from pyllama.training.run import METRICS, RunPolicy, Saved, new_run

SHOWN = 5                                                   # rows in the table of answers
EXPLANATION = "explanation"                                 # the column of what --explain finds


def finetune(task: str, source: Source, setup: Setup, settings: Settings, policy: RunPolicy, search: SearchConfig,
             out_dir: Path = Path("out"), log_steps: int = 50, *, adapting: Adapting) -> int:
    """Train a model on a task, from a trained model or from scratch.

    The best checkpoint is then measured on the test rows, or on the validation rows if there are none.

    Args:
        task: name of the task; see `pyllama tasks`
        out_dir: folder of the run: checkpoints, log, rows, metrics.json
        log_steps: steps between progress lines when the output is not a terminal
    """
    check_log_steps(log_steps)
    require_of_rows(settings, policy)
    memory.install()
    with new_run(out_dir, f"`pyllama resume {out_dir}`") as lock:
        task_run = tuning.begin(out_dir, task, source, setup, settings, policy, search, lock=lock,
                                adapting=adapting)
        for sentence in task_run.notes:
            console.print(sentence)
        return train(out_dir, task_run, log_steps)


def require_of_rows(settings: Settings, policy: RunPolicy) -> None:
    """Raise UserError if a setting is of texts alone."""
    for name, value, default in (("block_size", settings.block_size, Settings.block_size),
                                 ("eval_tokens", policy.eval_tokens, RunPolicy.eval_tokens)):
        if value != default:
            raise UserError(f"{name} has no effect on rows; remove it, or limit their length with max_length")


def resume(folder: Path, saved: Saved, log_steps: int) -> int:
    """Continue a run of finetune; returns the exit code."""
    return train(folder, resume_rows(tuning.resume(folder, saved)), log_steps)


def train(folder: Path, task_run: tuning.TaskRun, log_steps: int) -> int:
    """Train with a progress display, then measure; returns the exit code, 0 when done or that of show_run()."""
    task, plan, parts = task_run.task, task_run.plan, task_run.parts
    state, last_step, best = plan.state, plan.settings.max_steps, plan.best_so_far
    announce(f"{parameters_of(state)}; {len(parts['train']):,} training rows, {len(parts['dev']):,} "
             f"validation rows, {len(parts['test']):,} test rows; steps {state.step} to {last_step} in {folder}",
             plan.settings.dtype)
    if code := show_run(plan, log_steps):
        show_stop(state.step, folder)
        return code
    _, model, _ = tuning.load(folder, plan.settings.dtype)
    part = "test" if parts["test"] else "dev"
    for sentence in task.notes(parts[part], model, task_run.search):
        console.print(sentence)
    predicted, metrics = tuning.measure(task, parts[part], model, task_run.search)
    result = {"task": task.name, "rows": part, "step": best.best_step, **metrics}
    files.export(folder / METRICS, [files.to_json(result)])
    show(task, parts[part], predicted, metrics)
    if state.step < last_step:
        console.print(f"stopped early at step {state.step}: {best.stale} evaluations without improvement since step "
                      f"{best.best_step}")
    show_end(f"measured on the {part} rows at step {best.best_step}, the best checkpoint on the dev rows",
             then=f"try `pyllama {'chat' if task.name == instruct.task.name else 'predict --model'} "
                  f"{quoted(str(folder))}`")
    return 0


def predict(model: Path, search: SearchConfig, asked: Asked, data: Path | None = None,
            text: tuple[str, ...] = (), out: Path | None = None, export: Path | None = None,
            fields: tuple[str, ...] = (), bad_rows: Literal["fatal", "skip"] = "fatal", allow_nan: bool = False) -> int:
    """Answer rows or texts with a model that was trained on a task.

    For --text, one answer a line.  For the rows of a file, one JSON object a line: all fields of the row, then
    "predicted" and, of a class, its probability; with --bad_rows skip also "row", its number in the file.  --explain
    adds what each token contributed: below an answer, or as "explanation" in its object.

    Args:
        model: a run of finetune, or one of its checkpoints
        data: a .jsonl, .json, .csv or .tsv file of rows, or "-" for standard input; the answer field may be absent
        text: texts to answer, instead of a file
        out: file to write: .jsonl, .json, .csv, .tsv or, of tags, .conll (default: standard output)
        export: relations: file for the triples, as .csv, .graphml or .ttl, or drawn as .png
        fields: fields to read, in the task's order, with or without the answer (default: those of the training rows)
        bad_rows: on an invalid row, stop or skip the row
        allow_nan: accept weights that are NaN or infinite
    """
    if bool(data) == bool(text):
        raise UserError("predict needs either --data FILE or --text TEXT; give one of them")
    out = None if str(out) == "-" else out                  # standard output
    memory.install()
    task, trained, notes = tuning.load(model, allow_nan=allow_nan)
    exported = task.export(export) if export else None
    if asked.explain:
        deciding.check(task, asked)
    plain = lines_of_answers if text else answers.json_lines
    write = answers.format_of(out, plain) if out else plain
    if data:
        source = Source(data, fields or fields_of_training(trained), bad_rows)
        rows, row_notes = task.read(source, answer=False, all_optional=trained.entry.get("pairs", False))
        notes += row_notes
    else:
        rows = rows_of(task, text)
    rows, unread_notes = readable(task, rows, trained, bad_rows, answers=False, in_file=bool(data))
    notes += unread_notes
    too_long = task.truncated(rows, trained, learned_limit(trained))
    for sentence in (*notes, *too_long, *task.notes(rows, trained, search)):
        note(sentence)
    predicted, details = task.answered(rows, trained, search)
    if asked.explain:
        explained = map(shares.as_json, deciding.reasons(task, rows, predicted, trained, asked))
        details = [{**detail, EXPLANATION: found} for detail, found in zip(details, explained, strict=True)]
    table = answers.beside(rows, [*map(task.shown, predicted)], details, numbered=bad_rows == "skip")
    content = write(table).encode("utf-8", "backslashreplace")      # as JSON writes half of a surrogate pair
    if out:
        files.export(out, [content])
        console.print(f"wrote the answers to {counted(len(rows), 'row')} to {out}")
    else:
        emit(content.decode(), end="")
    if export and exported:
        triples, description = exported(rows, predicted)
        files.export(export, [triples])
        note(f"wrote {description} to {export}")
    return 0


def lines_of_answers(table: answers.Table) -> str:
    """The answers, one a line, each with its explanation below it if there is one."""
    found = [(answers.cell(row["predicted"]), *shares.lines(row.get(EXPLANATION))) for row in table]
    return "".join(f"{line}\n" for lines in found for line in lines)


def fields_of_training(trained) -> tuple[str, ...]:
    """The names of the fields in the rows that a model was trained on."""
    return tuple(trained.entry.get("fields", ()))


def show(task, rows, predicted, metrics) -> None:
    """Print the metrics, and the confusion matrix or the first answers."""
    names = metrics.get("labels", [])
    by_label = metrics.get("by_label", {})
    for name, value in metrics.items():
        if isinstance(value, float):
            console.print(f"{name:20}{value:.4f}")
        elif name not in ("labels", "confusion", "by_label"):
            console.print(f"{name:20}{value}")
    if names:
        table = confusion_table(names, metrics["confusion"])
    elif by_label:
        table = Table("label", *next(iter(by_label.values())), box=SIMPLE)
        for name, values in by_label.items():
            table.add_row(name, *(f"{value:.4f}" if isinstance(value, float) else f"{value:,}" for value in
                                  values.values()))
    else:
        table = Table(*task.fields, "predicted", box=SIMPLE)
        for row, answer in zip(rows[:SHOWN], predicted, strict=False):
            table.add_row(*(str(row.values[name])[:60] for name in task.fields), str(task.shown(answer))[:60])
    console.print(table, soft_wrap=False)
