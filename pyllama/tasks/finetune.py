"""Training on a task in a run's folder, and a trained model at work on new rows.

    RUN/data/train.jsonl  dev.jsonl  test.jsonl      the rows, so that a resumed run needs no other file
    RUN/metrics.json                                 what the best checkpoint does on the rows kept apart
"""
import contextlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pyllama import pretrained
from pyllama.beam import SearchConfig
from pyllama.errors import UserError, optional
from pyllama.files import DamagedFile, read_json, rewrite
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.pretrained import Model
from pyllama.tasks import TASKS, vectors
from pyllama.tasks.rows import Row, Source, read, split
from pyllama.tasks.task import Task, Trained
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.examples import Examples
from pyllama.training.loop import Settings, State, mean_loss, start
from pyllama.training.run import BestSoFar, Plan, RunPolicy, Saved, restore

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class Setup:
    """What to train, and on what."""

    model: str                                  # a trained model's folder, or one of `pyllama models`, from scratch
    dev: float = 0.1                            # share of the rows kept for validation
    test: float = 0.0                           # share of the rows kept for the measures at the end; 0: those of dev
    test_data: Path | None = None               # a file of rows for the measures at the end
    tokenizer: Path | None = None               # a tokenizer.json; None: the model's own, or byte pairs learned here
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
        if self.epochs is None:
            return settings
        return replace(settings, max_steps=-(-self.epochs * count // settings.rows_per_step))


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


class Job(NamedTuple):
    """Training on a task, ready to begin or to go on."""
    task: Task
    plan: Plan
    tokenizer: Tokenizer
    parts: dict[str, list[Row]]                 # by the names of PARTS
    search: SearchConfig
    notes: tuple[str, ...] = ()                 # what the user should know


def begin(folder: Path | None, name: str, source: Source, setup: Setup, settings: Settings, policy: RunPolicy,
          search: SearchConfig, model: Model | None = None) -> Job:
    """Training from step 0, of the model that setup names or of the one given.

    Raises UserError if the task does not suit the model, or the rows cannot be used.
    """
    task = task_of(name)
    for module in task.packages:
        optional(module, f"the task {name}")
    state, tokenizer, parts, notes = prepare(task, source, setup, settings, model)
    learner = trained(state.config, state.p, tokenizer)
    parts, room_notes = with_room(task, parts, learner, length_limit(setup, learner))
    if folder:
        save_rows(parts, folder / "data")
    paths = {field: str(value) if (value := getattr(setup, field)) else None
             for field in ("test_data", "tokenizer", "vectors")}
    about = {"task": name, "setup": asdict(setup) | paths, "search": asdict(search)}
    settings = setup.planned(settings, len(parts["train"]))
    plan = plan_of(folder, task, state, tokenizer, parts, settings, policy, about, BestSoFar())
    return Job(task, plan, tokenizer, parts, search, (*notes, *room_notes))


def resume(folder: Path, saved: Saved) -> Job:
    """A saved run on a task, from its latest checkpoint on."""
    task = task_of(saved.about["task"])
    state = start(pretrained.config_of(saved.checkpoint), saved.settings)
    restore(state, saved.checkpoint)
    parts = load_rows(folder / "data")
    plan = plan_of(folder, task, state, saved.tokenizer, parts, saved.settings, saved.policy, saved.about,
                   saved.best_so_far)
    return Job(task, plan, saved.tokenizer, parts, SearchConfig(**saved.about["search"]))


def plan_of(folder, task: Task, state: State, tokenizer: Tokenizer, parts, settings: Settings, policy: RunPolicy,
            about: dict, best_so_far: BestSoFar) -> Plan:
    rows = examples(task, parts, state, tokenizer)
    return Plan(folder, state, rows["train"], rows["dev"], settings, policy, about, tokenizer.rust.to_str(pretty=True),
                best_so_far, evaluation(task, parts["dev"], tokenizer))


def prepare(task: Task, source: Source, setup: Setup, settings: Settings, model: Model | None = None):
    """(state, tokenizer, {part: rows}, notes) to begin with: reads the rows; loads or makes model and tokenizer, if no
    model is given."""
    rows, notes = read(source, task.fields, task.usable, task.readers)
    parts = dict(zip(PARTS, split(rows, (setup.dev, setup.test), settings.seed), strict=True))
    if setup.test_data:
        test = replace(source, data=setup.test_data)
        parts["test"], test_notes = read(test, task.fields, task.usable, task.readers)
        notes += test_notes
    names = task.labels(rows) if task.labels else []
    answers = [row.values[task.fields[-1]] for row in parts["train"]]
    weights = balanced(names, answers) if setup.class_weights == "balanced" else None

    def suited(config):
        """The configuration for this task."""
        require_head(task, config.TYPE)
        changes = {"head": task.head} if "head" in config.names() else {}
        changes |= {"num_labels": len(names)} if names else {}
        changes |= {name: setup.resid_pdrop for name in config.DROPOUTS if setup.resid_pdrop is not None}
        longest = min(setup.max_length, getattr(config, "max_position_embeddings", setup.max_length))
        classes = {"id2label": {str(i): name for i, name in enumerate(names)},
                   "label2id": {name: i for i, name in enumerate(names)}} if names else {}
        entry = {"name": task.name, "fields": list(source.fields), "max_length": longest, "class_weights": weights}
        return replace(config, **changes, extra={**config.extra, **classes, "task": entry})

    if model is None and setup.model not in MODELS and Path(setup.model).exists():
        if setup.vectors:
            raise UserError(f"{setup.model} has vectors of its own already; leave --vectors out, or begin from scratch")
        model = pretrained.load(setup.model, setup.tokenizer, settings.dtype, suited)
        if model.tokenizer is None:
            raise UserError(f"{setup.model} has no tokenizer; name one with --tokenizer")
    elif model is not None:
        model = pretrained.changed(model, suited(model.config), settings.dtype)
    if model is not None:
        state = start(model.config, settings, model.params)
        return state, model.require_tokenizer(), parts, (*notes, *model.notes)
    state, tokenizer, model_notes = from_scratch(task, setup, settings, suited, parts["train"])
    return state, tokenizer, parts, (*notes, *model_notes)


def with_room(task: Task, parts: dict[str, list[Row]], model: Trained, limit: str) -> tuple[dict, tuple[str, ...]]:
    """(parts, notes): the parts without the rows that the model has no room to answer, and what to say of these.

    limit: what leaves no room, for the note.  Raises UserError if a part has no other rows.
    """
    if not task.fits:
        return parts, ()
    fitting = {part: [row for row, fits in zip(rows, task.fits(rows, model), strict=True) if fits]
               for part, rows in parts.items()}
    for part, rows in parts.items():
        if rows and not fitting[part]:
            raise UserError(f"no {part} row leaves room for an answer in {limit}; give shorter rows, or more room")
    total, fit = sum(map(len, parts.values())), sum(map(len, fitting.values()))
    note = f"{total - fit} of {total} rows left out: they leave no room for an answer in {limit}"
    return fitting, (note,) if fit < total else ()


def length_limit(setup: Setup, model: Trained) -> str:
    """What cuts a text, in words: max_length, unless a trained model reads no more."""
    context = getattr(model.config, "max_position_embeddings", math.inf)
    capped = setup.model not in MODELS and context <= setup.max_length
    return f"the model's context, {context} tokens" if capped else f"max_length, {model.max_length} tokens"


def from_scratch(task: Task, setup: Setup, settings: Settings, suited, rows: Sequence[Row]):
    """(state, tokenizer, notes): random numbers, or word vectors, to learn from these rows with."""
    if setup.model not in MODELS:
        raise UserError(f"there is no trained model at {setup.model}, nor is it one of {', '.join(MODELS)}, which "
                        f"begin from scratch; name one of these, or a folder")
    require_head(task, setup.model)
    if setup.vectors and task.writes:
        raise UserError(f"vectors belong to words, and {task.name} writes texts, which take more than words to spell; "
                        f"leave --vectors out")
    texts_of = task.texts or (lambda values: [values[name] for name in task.fields])
    texts = (text for row in rows for text in texts_of(row.values))
    learn = special.words if setup.vectors else task.tokenizer
    tokenizer = Tokenizer.load(setup.tokenizer) if setup.tokenizer else \
        learn(texts, setup.vocab_size, marks=task.markers)
    known = vectors.read(setup.vectors, tokenizer) if setup.vectors else None
    size = {"width": known.width, "heads": vectors.heads_for(known.width)} if known else {}
    shape = Dimensions(vocab_size=tokenizer.vocab_size, context=setup.max_length, head=task.head,
                       **special.ids_of(tokenizer), **size)
    try:
        config = MODELS[setup.model].config.small(shape)
    except UserError as error:
        if known is None:
            raise
        raise UserError(f"vectors of {known.width} numbers do not fit a {setup.model}: {error}; give others, or "
                        f"another --model") from None
    config = suited(config)
    state = start(config, settings)
    if known is None:
        return state, tokenizer, ()
    vectors.place(known, state.p, config)
    return state, tokenizer, (f"{len(known.ids):,} of {tokenizer.vocab_size:,} tokens have a vector in "
                              f"{setup.vectors}; the others are drawn at random",)


def balanced(names, labels) -> list[float]:
    """A weight for each class, so that all count the same."""
    if not names:
        raise UserError("class_weights are for tasks that tell classes apart; leave them out")
    counts = Counter(labels)
    return [len(labels) / (len(names) * max(1, counts[name])) for name in names]


def require_head(task: Task, kind: str) -> None:
    """Raises UserError if no model of this family has the head that the task needs."""
    if kind not in task.models():
        raise UserError(f"a {kind} model cannot {task.name}; take one of {', '.join(task.models())}")


def save_rows(parts: dict[str, Sequence[Row]], folder: Path) -> None:
    """Write the rows of each part into a run's folder.

    Raises UserError if files with other rows are there, or none can be written.
    """
    def line(row):
        return json.dumps({"place": row.place, **row.values}, ensure_ascii=False) + "\n"

    files = {folder / f"{part}.jsonl": "".join(map(line, rows)).encode() for part, rows in parts.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            if path.exists() and path.read_bytes() != content:
                raise UserError(f"{path} is there already and would be lost; choose another --out_dir")
        for path, content in files.items():
            rewrite(path, [content])
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another --out_dir") from None


def load_rows(folder: Path) -> dict[str, list[Row]]:
    """The rows that save_rows() wrote."""
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
    """A model that was trained on a task.  Raises UserError if it was not."""
    entry = config.extra.get("task")
    if entry is None:
        raise UserError("the model was not trained on a task; train it with `pyllama finetune` first")
    return Trained(config, p, tokenizer, entry["max_length"])


def examples(task: Task, parts: dict[str, list[Row]], state: State, tokenizer) -> dict[str, Examples]:
    """The examples of each part's rows."""
    model = trained(state.config, state.p, tokenizer)
    return {part: task.examples(rows, model) for part, rows in parts.items()}


def evaluation(task: Task, rows: Sequence[Row], tokenizer):
    """evaluate(state, examples, settings, most) for run.run: the loss, and the accuracy where it is cheap."""
    def evaluate(state: State, examples: Examples, settings: Settings, most: int | None = None) -> Measured:
        batches = (batch for _, batch in examples.in_turn(settings.batch_size))
        loss, _ = mean_loss(state.p, state.config, batches)
        if not task.quick:
            return Measured(loss)
        model = trained(state.config, state.p, tokenizer)
        return Measured(loss, task.metrics(task.predict(rows, model, None), rows)["accuracy"])
    return evaluate


def measure(task: Task, rows: Sequence[Row], model: Trained, search: SearchConfig | None) -> tuple[list, dict]:
    """(answers, metrics)"""
    answers = task.predict(rows, model, search)
    return answers, {**task.model_metrics(rows, model), **task.metrics(answers, rows)}


def holds_task(path: Path) -> bool:
    """Is there a model that was trained on a task?  Only a config.json is read; load() says what is wrong with it."""
    for folder in (path, *path.glob("checkpoints/step-*")):
        with contextlib.suppress(DamagedFile, AttributeError):
            return isinstance(read_json(folder / checkpoint.CONFIG).get("task"), dict)
    return False


def load(path: Path, dtype: str = "float32") -> tuple[Task, Trained, tuple[str, ...]]:
    """A model that was trained on a task: of a run the best checkpoint, or the latest where none was best."""
    place = checkpoint.best(path) if (path / "best").exists() else path
    model = pretrained.load(place, None, dtype)
    if model.tokenizer is None:
        raise UserError(f"{path} has no tokenizer, so that no text can be read; give a run of `pyllama finetune`")
    work = trained(model.config, model.params, model.tokenizer)
    return task_of(model.config.extra["task"]["name"]), work, model.notes
