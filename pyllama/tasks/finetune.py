"""Training on a task in a run's folder, and a trained model at work on new rows.

    RUN/data/train.jsonl  dev.jsonl  test.jsonl      the rows, so that a resumed run needs no other file
    RUN/metrics.json                                 what the best checkpoint does on the rows kept apart
"""
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pyllama import pretrained
from pyllama.beam import SearchConfig
from pyllama.errors import UserError
from pyllama.files import rewrite
from pyllama.tasks import TASKS, scratch
from pyllama.tasks.rows import Row, Source, read, split
from pyllama.tasks.task import Task, Trained
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.examples import Examples
from pyllama.training.loop import Settings, State, start
from pyllama.training.run import restore

PARTS = ("train", "dev", "test")
DROPOUTS = ("dropout", "resid_pdrop", "hidden_dropout_prob", "embd_pdrop")


@dataclass(frozen=True)
class Setup:
    """What to train, and on what."""

    model: str                                  # a trained model's folder, or one of `pyllama models`, from scratch
    dev: float = 0.1                            # share of the rows kept for validation
    test: float = 0.0                           # share of the rows kept for the measures at the end; 0: those of dev
    test_data: Path | None = None               # a file of rows for the measures at the end
    tokenizer: Path | None = None               # a tokenizer.json; None: the model's own, or byte pairs learnt here
    vocab_size: int = 4096                      # tokens these learn
    vectors: Path | None = None                 # word vectors (.txt, .vec) to begin with; words are tokens then
    max_length: int = 128                       # tokens of a text; what is longer is cut
    class_weights: Literal["none", "balanced"] = "none"     # balanced: all classes count the same
    resid_pdrop: float | None = None            # dropout; None: 0.1 from scratch, else as the model has it
    epochs: int | None = None                   # how often to learn from each row, in place of max_steps

    def __post_init__(self):
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}; it must be at least 1")
        if self.max_length < 3:
            raise UserError(f"max_length is {self.max_length}; it must be at least 3, for what stands around a text")
        if not 0 < self.dev < 1:
            raise UserError(f"dev is {self.dev}; give a share between 0 and 1, for a run is judged on the dev rows")
        if self.test and self.test_data:
            raise UserError("test and test_data both say what to measure on; give one of them")

    def planned(self, settings: Settings, count: int) -> Settings:
        """The settings, with as many steps as `epochs` of so many examples need."""
        at_once = settings.batch_size * settings.gradient_accumulation_steps
        return settings if self.epochs is None else replace(settings, max_steps=-(-self.epochs * count // at_once))


class Measured(NamedTuple):
    """An evaluation while a task is trained."""
    loss: float                                 # nats per target, mean
    accuracy: float | None = None               # where it is cheap

    @property
    def rank(self) -> float:
        """What the best checkpoint has the lowest of: wrong answers, or the loss where these are not counted."""
        return self.loss if self.accuracy is None else 1 - self.accuracy

    def __str__(self):
        return "" if self.accuracy is None else f"accuracy {self.accuracy:.1%}"


def task_of(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


def prepared(task: Task, source: Source, setup: Setup, settings: Settings):
    """(state, tokenizer, {part: rows}, notes) to begin with."""
    rows = read(source, task.fields, task.usable, task.readers)
    parts = dict(zip(PARTS, split(rows, (setup.dev, setup.test), settings.seed), strict=True))
    if setup.test_data:
        parts["test"] = read(replace(source, data=setup.test_data), task.fields, task.usable, task.readers)
    names = task.labels(rows) if task.labels else []
    learnt = [row.values[task.fields[-1]] for row in parts["train"]]
    weights = balanced(names, learnt) if setup.class_weights == "balanced" else None

    def suited(config):
        """The configuration for this task."""
        wanted = head(task, config.TYPE)
        changes = {"head": wanted} if hasattr(config, "head") else {}
        changes |= {"num_labels": len(names)} if names else {}
        changes |= {name: setup.resid_pdrop for name in DROPOUTS
                    if hasattr(config, name) and setup.resid_pdrop is not None}
        longest = min(setup.max_length, getattr(config, "max_position_embeddings", setup.max_length))
        known = {"id2label": {str(i): name for i, name in enumerate(names)},
                 "label2id": {name: i for i, name in enumerate(names)}} if names else {}
        about = {"name": task.name, "fields": list(source.fields), "max_length": longest, "class_weights": weights}
        return replace(config, **changes, extra={**config.extra, **known, "task": about})

    if setup.model not in scratch.ARCHITECTURES and Path(setup.model).exists():
        if setup.vectors:
            raise UserError(f"{setup.model} has vectors of its own already; leave --vectors out, or begin from scratch")
        found = pretrained.load(setup.model, setup.tokenizer, settings.dtype, suited)
        if found.tokenizer is None:
            raise UserError(f"{setup.model} has no tokenizer; name one with --tokenizer")
        return start(found.model, found.config, settings, found.params), found.tokenizer, parts, found.notes
    state, tokenizer, notes = from_scratch(task, setup, settings, suited, parts["train"])
    return state, tokenizer, parts, notes


def with_room(task: Task, parts: dict[str, list[Row]], work: Trained, limit: str) -> tuple[dict, tuple[str, ...]]:
    """(parts, notes): the parts without the rows that the model has no room to answer, and what to say of these.

    limit: what leaves no room, for the note.  Raises UserError if a part has no other rows.
    """
    if not task.fits:
        return parts, ()
    fitting = {part: [row for row, fits in zip(rows, task.fits(rows, work), strict=True) if fits]
               for part, rows in parts.items()}
    for part, rows in parts.items():
        if rows and not fitting[part]:
            raise UserError(f"no {part} row leaves room for an answer in {limit}; give shorter rows, or more room")
    many, left = (sum(map(len, some.values())) for some in (parts, fitting))
    note = f"{many - left} of {many} rows left out: they leave no room for an answer in {limit}"
    return fitting, (note,) if left < many else ()


def cut_by(setup: Setup, work: Trained) -> str:
    """What cuts a text: max_length, unless a trained model reads no more."""
    context = getattr(work.config, "max_position_embeddings", math.inf)
    capped = setup.model not in scratch.ARCHITECTURES and context <= setup.max_length
    return f"the model's context, {context} tokens" if capped else f"max_length, {work.max_length} tokens"


def from_scratch(task: Task, setup: Setup, settings: Settings, suited, rows: Sequence[Row]):
    """(state, tokenizer, notes): random numbers, or word vectors, to learn from these rows with."""
    kind = head(task, setup.model) if setup.model in scratch.ARCHITECTURES else "lm"
    told = task.texts or (lambda values: [values[name] for name in task.fields])
    texts = (text for row in rows for text in told(row.values))
    if setup.vectors and kind == "lm":
        raise UserError(f"vectors belong to words, and {task.name} writes texts, which take more than words to spell; "
                        f"leave --vectors out")
    learn = scratch.word_tokenizer if setup.vectors else task.tokenizer
    tokenizer = Tokenizer.load(setup.tokenizer) if setup.tokenizer else learn(texts, setup.vocab_size, own=task.own)
    found, shape, notes = None, {}, tuple[str, ...]()
    if setup.vectors:
        found = scratch.read_vectors(setup.vectors, tokenizer)
        width = found.rows.shape[1]
        shape = {"width": width} if setup.model == "lstm" else {"width": width, "heads": scratch.heads_for(width)}
        notes = (f"{len(found.ids):,} of {tokenizer.vocab_size:,} tokens have a vector in {setup.vectors}; the others "
                 f"are drawn at random",)
    config = suited(scratch.configuration(setup.model, tokenizer.vocab_size, setup.max_length, kind, 0.1,
                                          scratch.special(tokenizer), **shape))
    state = start(config.model, config, settings)
    if found:
        scratch.place_vectors(state.p, config, found)
    return state, tokenizer, notes


def balanced(names, labels) -> list[float]:
    """A weight for each class, so that all count the same."""
    if not names:
        raise UserError("class_weights are for tasks that tell classes apart; leave them out")
    counts = Counter(labels)
    return [len(labels) / (len(names) * max(1, counts[name])) for name in names]


def head(task: Task, kind: str) -> str:
    """The head that a model of this type needs."""
    if kind not in task.heads:
        raise UserError(f"a {kind} model cannot {task.name}; take one of {', '.join(task.heads)}")
    return task.heads[kind]


def keep(rows: dict[str, Sequence[Row]], folder: Path) -> None:
    """Write the rows into the run's folder.  Raises UserError if files with others are there, or none can be made."""
    files = {folder / f"{part}.jsonl": "".join(json.dumps({"place": row.place, **row.values}, ensure_ascii=False) + "\n"
                                               for row in some).encode() for part, some in rows.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            if path.exists() and path.read_bytes() != content:
                raise UserError(f"{path} is there already and would be lost; choose another --out_dir")
        for path, content in files.items():
            rewrite(path, [content])
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another --out_dir") from None


def kept(folder: Path) -> dict[str, list[Row]]:
    """What keep() wrote."""
    parts = {}
    for part in PARTS:
        path = folder / f"{part}.jsonl"
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            parts[part] = [Row(line.pop("place"), line) for line in lines]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is gone or damaged ({error}); restore it, or train anew") from None
    return parts


def trained(config, p, tokenizer) -> Trained:
    """A model and the task it was trained on.  Raises UserError if there is none."""
    about = config.extra.get("task")
    if about is None:
        raise UserError("the model was not trained on a task; train it with `pyllama finetune` first")
    return Trained(config, p, tokenizer, about["max_length"])


def examples(task: Task, parts: dict[str, list[Row]], state: State, tokenizer) -> dict[str, Examples]:
    """What is learnt from and measured on."""
    work = trained(state.config, state.p, tokenizer)
    return {part: task.examples(rows, work) for part, rows in parts.items()}


def evaluation(task: Task, rows: Sequence[Row], tokenizer):
    """evaluate(state, examples, settings, most) for run.run: the loss, and the accuracy where it is cheap."""
    def evaluate(state: State, examples: Examples, settings: Settings, most: int | None = None) -> Measured:
        total, count = 0.0, 0
        for _, batch in examples.in_turn(settings.batch_size):
            value, _ = state.model.loss(**batch.inputs, p=state.p, c=state.config, count=1)
            total, count = total + float(value), count + batch.targets
        if not task.quick:
            return Measured(total / count)
        work = trained(state.config, state.p, tokenizer)
        return Measured(total / count, task.metrics(task.predict(rows, work, None), rows)["accuracy"])
    return evaluate


def measure(task: Task, rows: Sequence[Row], work: Trained, search: SearchConfig | None) -> tuple[list, dict]:
    """(answers, metrics)"""
    answers = task.predict(rows, work, search)
    return answers, {**(task.of_model(rows, work) if task.of_model else {}), **task.metrics(answers, rows)}


def load(path: Path, dtype: str = "float32") -> tuple[Task, Trained, tuple[str, ...]]:
    """A model that was trained on a task: of a run the best checkpoint, or the latest where none was best."""
    place = checkpoint.best(path) if (path / "best").exists() else path
    found = pretrained.load(place, None, dtype)
    if found.tokenizer is None:
        raise UserError(f"{path} has no tokenizer, so that no text can be read; give a run of `pyllama finetune`")
    work = trained(found.config, found.params, found.tokenizer)
    return task_of(found.config.extra["task"]["name"]), work, found.notes


def resumed(saved: checkpoint.Checkpoint, settings: Settings) -> State:
    """The state of a saved run on a task."""
    model, configuration = pretrained.of_type(saved.config, saved.folder)
    state = start(model, configuration.from_dict(saved.config), settings)
    restore(state, saved)
    return state
