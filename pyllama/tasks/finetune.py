"""Fine-tune a model on a task in a run folder, and load it again to answer new rows.

    RUN/data/           the rows: see run_rows.py
    RUN/metrics.json    metrics of the best checkpoint on the test or validation rows; only the command `pyllama
                        finetune` writes it
"""
import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from pyllama import pretrained
from pyllama.errors import UserError, optional, with_article
from pyllama.files import DamagedFile, read_json
from pyllama.generation import SearchConfig
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.pretrained import Model
from pyllama.tasks import TASKS, foreign, vectors
from pyllama.tasks.readable import readable
from pyllama.tasks.rows import Row, Source, split
from pyllama.tasks.run_rows import PARTS, load_rows, save_rows
from pyllama.tasks.setup import Setup
from pyllama.tasks.task import Task, Trained, labels_of
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.adapting import Adapting, continued, started
from pyllama.training.examples import Examples
from pyllama.training.lock import RunLock
from pyllama.training.loop import Settings, State, mean_loss
from pyllama.training.run import BestSoFar, Plan, RunPolicy, Saved
from pyllama.training.working import rounded_tree

# The tasks of Hugging Face's heads; and the tokens that such a model reads at most
OF_HUGGING_FACE = {"ForSequenceClassification": "classify", "ForTokenClassification": "tag",
                   "ForQuestionAnswering": "qa"}
LONGEST = 512
RENAMED = {"summarise": "summarize"}            # names of tasks in runs made by 0.1.0


class Measured(NamedTuple):
    """An evaluation during the training of a task."""
    loss: float                                 # mean, nats per target
    accuracy: float | None = None               # of tasks with quick metrics
    f1: float | None = None                     # of entities

    @property
    def rank(self) -> float:
        """1 - F1 of entities, else the error rate, or the loss without either; the best checkpoint has the lowest."""
        if self.f1 is not None:
            return 1 - self.f1
        return self.loss if self.accuracy is None else 1 - self.accuracy

    def __str__(self):
        shares = {"accuracy": self.accuracy, "F1": self.f1}
        return "   ".join(f"{name} {share:.1%}" for name, share in shares.items() if share is not None)


def task_of(name: str) -> Task:
    """The task of this name.  Raises UserError if there is none."""
    name = RENAMED.get(name, name)
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


class TaskRun(NamedTuple):
    """A run on a task, ready to start or to continue."""
    task: Task
    plan: Plan
    tokenizer: Tokenizer
    parts: dict[str, list[Row]]                 # by the names of PARTS
    search: SearchConfig
    notes: tuple[str, ...] = ()                 # notes for the user


def begin(folder: Path | None, name: str, source: Source, setup: Setup, settings: Settings, policy: RunPolicy,
          search: SearchConfig, model: Model | None = None, lock: RunLock | None = None,
          adapting: Adapting | None = None) -> TaskRun:
    """A run from step 0, of `model` or, if it is None, of the model that setup names.

    lock       of the folder; None: run() locks it
    adapting   adapters to train in place of the parameters; None: none

    Raises UserError if the model cannot do the task, the rows are invalid, or the settings ask for packing.
    """
    task = task_of(name)
    if settings.packing:
        raise UserError("packing keeps the documents of a text apart, and rows are apart already; leave it out")
    for module in task.packages:
        optional(module, f"the task {task.name}")
    state, tokenizer, parts, notes = prepare(task, source, setup, settings, model, adapting, folder is not None)
    parts["test"] = foreign.with_names(task, parts["test"], state.config)
    learner = trained(state.config, state.p, tokenizer)
    for part, rows in parts.items():
        if rows:
            parts[part], unread = readable(task, rows, learner, source.bad_rows)
            notes += unread
    limit = length_limit(setup, learner)
    parts, room_notes = with_room(task, parts, learner, limit)
    room_notes += task.truncated([row for part in parts.values() for row in part], learner, limit)
    stored = save_rows(parts, folder / "data") if folder else {}
    paths = {field: str(value) if (value := getattr(setup, field)) else None
             for field in ("test_data", "tokenizer", "vectors")}
    about = {"task": task.name, "setup": asdict(setup) | paths, "search": asdict(search), "rows": stored}
    settings = setup.planned(settings, len(parts["train"]))
    plan = plan_of(folder, task, state, tokenizer, parts, settings, policy, about, BestSoFar(), lock)
    return TaskRun(task, plan, tokenizer, parts, search, (*notes, *room_notes))


def resume(folder: Path, saved: Saved) -> TaskRun:
    """A saved run on a task, from its latest checkpoint."""
    task = task_of(saved.about["task"])
    config = pretrained.config_of(saved.checkpoint)
    base = pretrained.base_params(saved.checkpoint, config, saved.settings.master_dtype)
    state = continued(config, saved, base=base)
    tokenizer = framed(saved.tokenizer, state.config)
    parts, rows = load_rows(folder, saved.about.get("rows"))
    plan = plan_of(folder, task, state, tokenizer, parts, saved.settings, saved.policy, saved.about | {"rows": rows},
                   saved.best_so_far, saved.lock)
    return TaskRun(task, plan, tokenizer, parts, SearchConfig(**saved.about["search"]))


def plan_of(folder, task: Task, state: State, tokenizer: Tokenizer, parts, settings: Settings, policy: RunPolicy,
            about: dict, best_so_far: BestSoFar, lock: RunLock | None) -> Plan:
    """The arguments of run.run() for a task."""
    rows = examples(task, parts, state, tokenizer)
    return Plan(folder, state, rows["train"], rows["dev"], settings, policy, about,
                tokenizer.files(state.config.takes_types), best_so_far, evaluation(task, parts["dev"], tokenizer),
                lock=lock)


def prepare(task: Task, source: Source, setup: Setup, settings: Settings, model: Model | None = None,
            adapting: Adapting | None = None, saves: bool = False):
    """Read the rows, and load or create model and tokenizer if `model` is None.  adapting, saves: see started().

    Returns (state, tokenizer, {part: rows}, notes).
    """
    whole, notes = task.read(source)
    rows = task.alike([Row(row.place, row.values) for row in whole])        # without what else the file has
    del whole
    parts = dict(zip(PARTS, split(rows, (setup.dev, setup.test), settings.seed), strict=True))
    if setup.test_data:
        test = replace(source, data=setup.test_data)
        parts["test"], test_notes = task.read(test)
        notes += test_notes
    found = task.labels(rows) if task.labels else []
    answers = [row.values[task.fields[-1]] for row in parts["train"]]
    notes += tuple(task.remarks(rows))

    def suited(config):
        """The configuration for this task.  A head that has the same classes keeps their order."""
        require_head(task, config.TYPE)
        trained_names = labels_of(config) if config.head == task.head else []
        names = trained_names if sorted(trained_names) == sorted(found) else found
        weights = balanced(names, answers) if setup.class_weights == "balanced" else None
        changes = {"head": task.head} if "head" in config.names() else {}
        scores = names or task.outputs
        changes |= {"num_labels": len(scores)} if scores else {}
        changes |= {name: setup.resid_pdrop for name in config.DROPOUTS if setup.resid_pdrop is not None}
        longest = min(setup.max_length, config.context or setup.max_length)
        extra = {name: value for name, value in config.extra.items() if name != "problem_type"}
        extra |= {"problem_type": task.problem_type} if task.problem_type else {}
        extra |= {"id2label": {str(i): name for i, name in enumerate(scores)},
                  "label2id": {name: i for i, name in enumerate(scores)}} if scores else {}
        entry = {"name": task.name, "fields": list(source.fields), "max_length": longest, "class_weights": weights,
                 "pairs": any("text_pair" in row.values for row in rows), **task.stored}
        return replace(config, **changes, extra={**extra, "task": entry})

    if model is None and setup.model not in MODELS and Path(setup.model).exists():
        if setup.vectors:
            raise UserError(f"{setup.model} already has embeddings; remove vectors, or train from scratch")
        stored = adapting.base_dtype if adapting else None
        model = pretrained.load(setup.model, setup.tokenizer, settings.master_dtype, suited, base_dtype=stored)
        if model.tokenizer is None:
            raise UserError(f"{setup.model} has no tokenizer; set tokenizer to a tokenizer.json")
    elif model is not None:
        model = pretrained.changed(model, suited(model.config), settings.master_dtype)
    if model is not None:
        config = padded(model.config, model.require_tokenizer())
        state = started(config, settings, model.params, None, adapting, model.path, saves)
        notes = (*notes, *model.notes, *model.config.training_notes())
        return state, framed(model.require_tokenizer(), model.config), parts, notes
    state, tokenizer, model_notes = from_scratch(task, setup, settings, suited, parts["train"], adapting)
    return state, framed(tokenizer, state.config), parts, (*notes, *model_notes)


def padded(config, tokenizer: Tokenizer):
    """The configuration with the tokenizer's padding token, if it has none: transformers finds the end of a text by it.
    """
    token = tokenizer.special_token("pad_token")
    if token is None or getattr(config, "pad_token_id", special.PAD) is not None:
        return config
    changes: dict[str, Any] = {"pad_token_id": tokenizer.rust.token_to_id(token)}
    return replace(config, **changes)


def with_room(task: Task, parts: dict[str, list[Row]], model: Trained, limit: str) -> tuple[dict, tuple[str, ...]]:
    """(parts, notes): the parts without the rows that leave no room for an answer, and how many these were.

    limit: the limit in words, for the note.  Raises UserError if a part has no other rows.
    """
    if not task.fits:
        return parts, ()
    fitting = {part: [row for row, fits in zip(rows, task.fits(rows, model), strict=True) if fits]
               for part, rows in parts.items()}
    for part, rows in parts.items():
        if rows and not fitting[part]:
            raise UserError(f"no {part} row leaves room for an answer in {limit}; shorten the rows or raise the limit")
    total, fit = sum(map(len, parts.values())), sum(map(len, fitting.values()))
    note = f"{total - fit} of {total} rows skipped: they leave no room for an answer in {limit}"
    return fitting, (note,) if fit < total else ()


def length_limit(setup: Setup, model: Trained) -> str:
    """The limit of a text's length in words: max_length, or the trained model's context if that is smaller."""
    context = model.config.context or math.inf
    capped = setup.model not in MODELS and context <= setup.max_length
    return f"the model's context, {context} tokens" if capped else f"max_length, {model.max_length} tokens"


def from_scratch(task: Task, setup: Setup, settings: Settings, suited, rows: Sequence[Row],
                 adapting: Adapting | None = None):
    """(state, tokenizer, notes) of a small model with random weights, its embeddings from word vectors if setup names a
    file of them; the tokenizer is learned from these rows."""
    if setup.model not in MODELS:
        raise UserError(f"there is no trained model at {setup.model}, and it is not a model family; give the folder of "
                        f"a trained model, or one of {', '.join(MODELS)} to train from scratch")
    require_head(task, setup.model)
    if setup.vectors and task.writes:
        raise UserError(f"word vectors need a vocabulary of words, but {task.name} writes text, which needs subwords; "
                        f"remove vectors")
    texts_of = task.texts or (lambda values: [values[name] for name in task.fields])
    texts = (text for row in rows for text in texts_of(row.values))
    learn = special.words if setup.vectors else task.tokenizer
    tokenizer = Tokenizer.load(setup.tokenizer) if setup.tokenizer else \
        learn(texts, setup.vocab_size, marks=task.markers)
    pretrained_vectors = vectors.read(setup.vectors, tokenizer) if setup.vectors else None
    size: dict[str, int] = {}
    if pretrained_vectors:
        size = {"width": pretrained_vectors.width, "heads": vectors.heads_for(pretrained_vectors.width)}
    shape = Dimensions(vocab_size=tokenizer.vocab_size, context=setup.max_length, head=task.head,
                       **special.ids_of(tokenizer), **size)
    try:
        config = MODELS[setup.model].config.small(shape)
    except UserError as error:
        if pretrained_vectors is None:
            raise
        raise UserError(f"vectors of width {pretrained_vectors.width} do not fit {with_article(setup.model)}: {error}; "
                        f"give other vectors, or another model") from None
    config = suited(config)
    state = started(config, settings, None, None, adapting)
    if pretrained_vectors is None:
        return state, tokenizer, ()
    vectors.place(pretrained_vectors, state.p, config)
    note = (f"{len(pretrained_vectors.ids):,} of {tokenizer.vocab_size:,} tokens have a vector in {setup.vectors}; the "
            f"others are initialized at random")
    return state, tokenizer, (note,)


def balanced(names, answers) -> list[float]:
    """A weight for each class, inversely proportional to its frequency, with mean 1 over the rows."""
    if not names or any(not isinstance(label, str) for label in answers):
        raise UserError("class_weights apply only to tasks with one class for each row; remove them")
    counts = Counter(answers)
    return [len(answers) / (len(names) * max(1, counts[name])) for name in names]


def require_head(task: Task, kind: str) -> None:
    """Raise UserError if no model of this family has the head that the task needs."""
    if kind not in task.models():
        raise UserError(f"{with_article(kind)} model cannot do the task {task.name}; choose one of "
                        f"{', '.join(task.models())}")


def framed(tokenizer: Tokenizer, config) -> Tokenizer:
    """The tokenizer with the start and end tokens around a text, if they are not there already.

    A model that continues texts gets no end token, because its texts are prompts.  One that others trained on a task
    has seen what its tokenizer adds, and nothing else.  model_max_length of the settings is the task's limit, at which
    transformers truncates a text, too.
    """
    entry = config.extra.get("task")
    if not isinstance(entry, dict):
        return Tokenizer(tokenizer.rust, tokenizer.settings, bare=True)
    whole = special.framed(tokenizer, end=config.learns != "next token")
    limit = {"model_max_length": entry["max_length"]} if "max_length" in entry else {}
    return whole if limit.items() <= whole.settings.items() else Tokenizer(whole.rust, {**whole.settings, **limit})


def trained(config, p, tokenizer) -> Trained:
    """The model as a Trained.  Raises UserError if it was not trained on a task."""
    task = task_of_config(config.to_dict())
    if task is None:
        raise UserError("the model was not trained on a task; fine-tune it on one first")
    longest = min(config.context or LONGEST, LONGEST)
    max_length = config.extra.get("task", {}).get("max_length", longest)
    return Trained(config, p, framed(tokenizer, config), max_length, task.markers)


def task_of_config(stored: dict) -> Task | None:
    """The task of a config.json: the one that our training stored, or that of a Hugging Face model's head; or None."""
    entry = stored.get("task")
    if isinstance(entry, dict):
        return task_of(entry["name"])
    if "head" in stored and not stored.get("id2label"):     # of ours, and not trained yet
        return None
    kinds = (kind for name in stored.get("architectures") or () for kind in OF_HUGGING_FACE if name.endswith(kind))
    name = next((OF_HUGGING_FACE[kind] for kind in kinds), None)
    if name == "classify" and (stored.get("num_labels") == 1 or len(stored.get("id2label") or "ab") == 1):
        name = "regress"
    return task_of(name) if name else None


def examples(task: Task, parts: dict[str, list[Row]], state: State, tokenizer) -> dict[str, Examples]:
    """The examples of each part's rows."""
    model = trained(state.config, state.p, tokenizer)
    return {part: task.examples(rows, model) for part, rows in parts.items()}


def evaluation(task: Task, rows: Sequence[Row], tokenizer):
    """evaluate(state, examples, settings, most) for run.run: the loss, and the accuracy if the metrics are quick."""
    def evaluate(state: State, examples: Examples, settings: Settings, most: int | None = None) -> Measured:
        batches = (batch for _, batch in examples.in_turn(settings.batch_size))
        p = state.working.tree
        loss, _ = mean_loss(p, state.config, batches)
        if task.calibrated:
            entry = state.config.extra["task"] | task.calibrated(rows, trained(state.config, p, tokenizer))
            state.config = replace(state.config, extra={**state.config.extra, "task": entry})
        if not task.quick:
            return Measured(loss)
        model = trained(state.config, p, tokenizer)
        metrics = task.metrics(task.predict(rows, model, None), rows)
        f1 = None if task.ranked_by == "accuracy" else metrics.get(task.ranked_by)
        return Measured(loss, metrics["accuracy"], f1)
    return evaluate


def measure(task: Task, rows: Sequence[Row], model: Trained, search: SearchConfig | None) -> tuple[list, dict]:
    """(answers, metrics) of the model on the rows."""
    answers = task.predict(rows, model, search)
    return answers, {**task.model_metrics(rows, model), **task.metrics(answers, rows)}


def stored_task(path: Path) -> Task | None:
    """The task that the model at this path was trained on.  Reads config.json alone; load() reports its errors."""
    path = checkpoint.followed(path)
    for folder in (path, *path.glob("checkpoints/step-*")):
        with contextlib.suppress(DamagedFile, AttributeError):
            return task_of_config(read_json(folder / checkpoint.CONFIG))
    return None


def load(path: Path, dtype: str = "float32", allow_nan: bool = False) -> tuple[Task, Trained, tuple[str, ...]]:
    """(task, model, notes) of a model that was trained on a task; of a run, its best checkpoint or else its latest.

    dtype   of the computation; where answers are written, token by token, "bfloat16" is that of the matrices

    Raises UserError if the model was not trained on a task, or has no tokenizer.
    """
    folder = checkpoint.best(path) if (path / "best").exists() else path
    rounds = dtype == "bfloat16"
    model = pretrained.load(folder, None, "float32" if rounds else dtype, allow_nan=allow_nan)
    if model.tokenizer is None:
        raise UserError(f"{path} has no tokenizer, so it cannot read text; give a run of finetune")
    learner = trained(model.config, model.params, model.tokenizer)
    task = task_of_config(model.config.to_dict())
    assert task                                             # trained() raises an error if there is none
    if rounds:
        p = model.quantize("bf16").params if task.writes else rounded_tree(model.params)
        learner = learner._replace(params=p)
    return task, learner, model.notes
