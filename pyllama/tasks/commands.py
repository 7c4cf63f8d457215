"""The commands finetune, predict and evaluate; their flags are their parameters and the fields of their dataclasses."""
import contextlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE
from rich.table import Table

from pyllama import memory
from pyllama.display import console, follow, interruptible
from pyllama.errors import UserError
from pyllama.files import rewrite, to_json
from pyllama.run import Keeping, Standing, run
from pyllama.search import SearchConfig
from pyllama.tasks import finetune as tuning
from pyllama.tasks.finetune import Setup
from pyllama.tasks.rows import BadRow, Row, Source, read, texts_of
from pyllama.tasks.seq2seq import need
from pyllama.train import Settings

SHOWN = 5                                                   # rows of the table of examples
WIDE = 5                                                    # classes whose names fit side by side


def finetune(task: str, source: Source, setup: Setup, settings: Settings, keeping: Keeping, search: SearchConfig,
             out_dir: Path = Path("out"), log_steps: int = 50) -> int:
    """Train a model on a task, from a trained model or from scratch, and measure its best checkpoint.

    Args:
        task: The name of a task; see `pyllama tasks`.
        out_dir: Folder of the run: checkpoints, log, rows, metrics.json.
        log_steps: Steps between lines where there is no terminal to draw on.
    """
    if log_steps < 1:
        raise UserError(f"log_steps is {log_steps}; it must be at least 1")
    for name, value, usual in (("block_size", settings.block_size, Settings.block_size),
                               ("eval_tokens", keeping.eval_tokens, Keeping.eval_tokens)):
        if value != usual:
            raise UserError(f"{name} is for texts and has no effect on rows; leave it out (max_length cuts a long row)")
    if (out_dir / "latest").exists():
        raise UserError(f"{out_dir} holds a run already; go on with it by `pyllama resume {out_dir}`, or choose "
                        f"another --out_dir")
    memory.install()
    job = tuning.task_of(task)
    for module in job.needs:
        need(module)
    state, tokenizer, parts, notes = tuning.prepared(job, source, setup, settings)
    work = tuning.trained(state.config, state.p, tokenizer)
    parts, more = tuning.with_room(job, parts, work, tuning.cut_by(setup, work))
    for note in (*notes, *more):
        console.print(note)
    tuning.keep(parts, out_dir / "data")
    about = {"task": task, "setup": asdict(setup) | {name: str(value) if (value := getattr(setup, name)) else None
                                                     for name in ("test_data", "tokenizer", "vectors")},
             "search": asdict(search)}
    examples = tuning.examples(job, parts, state, tokenizer)
    return train(job, out_dir, state, tokenizer, parts, examples, setup.planned(settings, len(examples["train"])),
                 keeping, about, Standing(), search, log_steps)


def resume(run_folder: Path, saved, settings: Settings, keeping: Keeping, tokenizer, standing, log_steps) -> int:
    """Go on with a run of finetune."""
    about = saved.trainer["about"]
    job = tuning.task_of(about["task"])
    state, parts = tuning.resumed(saved, settings), tuning.kept(run_folder / "data")
    return train(job, run_folder, state, tokenizer, parts, tuning.examples(job, parts, state, tokenizer), settings,
                 keeping, about, standing, SearchConfig(**about["search"]), log_steps)


def train(job, folder, state, tokenizer, parts, examples, settings, keeping, about, standing, search, log_steps) -> int:
    """Train while showing it, then measure; 0 when done, 130 when Ctrl-C stopped it."""
    console.print(f"{state.flat.size:,} parameters; {len(parts['train']):,} rows to train on, {len(parts['dev']):,} to "
                  f"validate on, {len(parts['test']):,} to test on; steps {state.step} to {settings.max_steps} in "
                  f"{folder}")
    happenings = run(folder, state, examples["train"], examples["dev"], settings, keeping, about,
                     tokenizer.rust.to_str(pretty=True), standing, tuning.evaluation(job, parts["dev"], tokenizer))
    with interruptible() as asked, contextlib.closing(happenings):
        for _ in follow(happenings, state.step, settings.max_steps, log_steps):
            if asked.is_set():
                break
    if asked.is_set() and state.step < settings.max_steps:
        console.print(f"stopped at step {state.step}; go on with `pyllama resume {folder}`")
        return 130
    memory.release()                                    # what it took to train
    _, work, _ = tuning.load(folder, settings.dtype)
    part = "test" if parts["test"] else "dev"
    answers, metrics = tuning.measure(job, parts[part], work, search)
    put(folder / "metrics.json", [to_json({"task": job.name, "rows": part, "step": standing.best_step, **metrics})])
    show(job, parts[part], answers, metrics)
    if state.step < settings.max_steps:
        console.print(f"out of patience at step {state.step}: the last {standing.stale} evaluations on the dev rows "
                      f"were no better than that of step {standing.best_step}")
    console.print(f"measured on the {part} rows at step {standing.best_step}, the best on the dev rows; peak "
                  f"memory {memory.peak_rss() / 2 ** 20:,.0f} MiB; try `pyllama predict --model {folder}`")
    return 0


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
    job, work, notes = tuning.load(model)
    for note in notes:                                          # the answers go to standard output
        print(note, file=sys.stderr)
    exported = job.export(export) if export else None
    asked = job.fields[:-1]
    usable = job.askable or (lambda values: texts_of(values, asked, job.also))
    rows = given(job, asked, usable, text) if not data else \
        read(Source(data, fields or told(work), bad_rows), job.fields, usable, job.readers, answer=False)
    answers = job.predict(rows, work, search)
    lines = answers if text else [json.dumps({**row.values, job.fields[-1]: answer}, ensure_ascii=False)
                                  for row, answer in zip(rows, answers, strict=True)]
    if out:
        put(out, ["".join(line + "\n" for line in lines).encode()])
        console.print(f"wrote {len(lines):,} lines to {out}")
    else:
        sys.stdout.writelines(line + "\n" for line in lines)
    if exported:
        content, what = exported(rows, answers)
        put(export, [content])
        print(f"wrote {what} to {export}", file=sys.stderr)
    return 0


def told(work) -> tuple[str, ...]:
    """The names that the fields had in the rows it was trained on."""
    return tuple(work.config.extra["task"].get("fields", ()))


def put(path, chunks) -> None:
    """Write a file that the user named."""
    try:
        rewrite(path, chunks)
    except (OSError, ValueError) as error:                      # a path such as "." has no name
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {why}; name a file in a folder that exists") from None


def given(job, asked, usable, texts) -> list[Row]:
    """Rows of the texts on the command line."""
    if len(asked) > 1:
        raise UserError(f"{job.name} reads {' and '.join(asked)} of each row, which --text cannot tell apart; give "
                        f"rows with --data")
    try:
        return [Row(f"text {i}", usable({asked[0]: one})) for i, one in enumerate(texts, 1)]
    except BadRow as error:
        raise UserError(f"a --text cannot be used: {error}; mend it") from None


def evaluate(model: Path, source: Source, search: SearchConfig, out: Path | None = None) -> int:
    """Measure a model that was trained on a task.

    Args:
        model: A run of finetune, or one of its checkpoints.
        out: A file for the measures, as JSON.
    """
    memory.install()
    job, work, notes = tuning.load(model)
    for note in notes:
        console.print(note)
    rows = read(replace(source, fields=source.fields or told(work)), job.fields, job.usable, job.readers)
    limit = f"the {work.max_length} tokens that the model was trained to read"
    parts, notes = tuning.with_room(job, {"given": rows}, work, limit)
    for note in notes:
        console.print(note)
    rows = parts["given"]
    answers, metrics = tuning.measure(job, rows, work, search)
    show(job, rows, answers, metrics)
    if out:
        put(out, [to_json({"task": job.name, **metrics})])
    return 0


def show(job, rows, answers, metrics) -> None:
    """The numbers; the confusion matrix or some of the answers."""
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
        table = Table(*job.fields, "predicted", box=SIMPLE)
        for row, answer in zip(rows[:SHOWN], answers, strict=False):
            table.add_row(*(str(row.values[name])[:60] for name in job.fields), answer[:60])
    console.print(table)
