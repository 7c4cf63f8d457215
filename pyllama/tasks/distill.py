"""Runs that train a student by its teacher, on a text or on the rows of a task."""
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pyllama import params, pretrained
from pyllama.errors import UserError, check_choices, with_article
from pyllama.files import sha256
from pyllama.generation import SearchConfig
from pyllama.quantization import decoded_tree
from pyllama.tasks import classify, scores
from pyllama.tasks import finetune as tuning
from pyllama.tasks.finetune import Setup, TaskRun
from pyllama.tasks.rows import Source
from pyllama.tasks.student import Student, size_of, student_of
from pyllama.tasks.task import Task, Trained, labels_of
from pyllama.text.tokens import Tokens
from pyllama.training import checkpoint, text_run
from pyllama.training.distilling import Distillation, Teacher, class_loss_of, loss_of
from pyllama.training.examples import Examples
from pyllama.training.fingerprint import fingerprint
from pyllama.training.loop import SOLO, Settings
from pyllama.training.parallel import first_alone
from pyllama.training.run import Plan, RunPolicy, changed_since, from_stored
from pyllama.training.teacher_scores import kept, scored
from pyllama.training.text_run import Text
from pyllama.training.working import rounded_tree

Progress = Callable[[int, int], object]         # called as progress(done, total)
ROWS = 1024                                     # that a teacher scores between two writes
KEY = "distillation"                            # of what a run keeps of its teacher


def silent(done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class Material:
    """What the student reads: a text, or the rows of a task if the teacher was trained on one."""

    data: tuple[str, ...]                       # texts, as for train; of a task, a file of rows, as for finetune
    field: str = "text"                         # text: field of a .jsonl file that holds it
    validation: float = 0.1                     # share of the text or of the rows held out for validation
    split: Literal["position", "document"] = "position"     # text: hold out the last part, or random documents
    epochs: int | None = None                   # rows: passes over them, instead of max_steps
    max_length: int = 128                       # rows: maximum tokens of a text; longer ones are truncated
    test: float = 0.0                           # rows: share held out for the final metrics; 0: use the validation rows
    test_data: Path | None = None               # rows: file of rows for the final metrics

    def __post_init__(self):
        check_choices(self)

    def require_default(self, names: tuple[str, ...], of: str) -> None:
        """Raise UserError if one of these fields, which apply to `of` alone, is set."""
        for name in names:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(f"{name} applies to {of}, which this teacher does not learn from; remove it")


# --- runs on a text ---------------------------------------------------------------------------------------------------

def followed(path: Path) -> Path:
    """The best checkpoint of a run, or the path itself."""
    return checkpoint.best(path) if (path / "best").exists() else path


def read_teacher(path: Path, dtype: str, tokenizer: Path | None = None) -> pretrained.Model:
    """The model of a path, in float32 or float64."""
    model = pretrained.load(followed(path), tokenizer, dtype)
    return replace(model, params=decoded_tree(model.params))


def begin_text(folder: Path | None, path: Path, material: Material, student: Student, s: Distillation,
               settings: Settings, policy: RunPolicy, *, tokenizer: Path | None = None, like=None, comm=SOLO,
               encode: Callable = text_run.prepare, lock=None, progress: Progress = silent
               ) -> tuple[Plan, pretrained.Model]:
    """(a run on a text from step 0, the student).    tokenizer: the teacher's; None: the one in its folder

    Raises UserError if teacher and student have different vocabularies, or as text_run.begin() does.
    """
    material.require_default(("epochs", "max_length", "test", "test_data"), "the rows of a task")
    teacher = read_teacher(path, settings.master_dtype, tokenizer)
    if teacher.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; give one with tokenizer")
    if teacher.config.learns not in ("next token", "masked tokens"):
        raise UserError(f"{path} is {with_article(teacher.config.TYPE)} with the head {teacher.config.head!r}, which "
                        f"predicts neither the next nor masked tokens; give another teacher")
    model = student_of(teacher, student, settings)
    require_alike(teacher, model, settings, s)
    require_effect(settings, s)
    text = Text(material.data, str(path), field=material.field, validation=material.validation, split=material.split)
    plan = text_run.begin(folder, model.config, model.require_tokenizer(), text, settings, policy, params=model.params,
                          like=like, comm=comm, encode=encode, lock=lock)
    own = Teacher(teacher.params, teacher.config)
    return taught(plan, s, about_teacher(path, fingerprint(own.p), s), lambda: own, like, progress), model


def require_alike(teacher: pretrained.Model, student: pretrained.Model, settings: Settings, s: Distillation) -> None:
    """Raise UserError unless both learn the same from the same tokens, as many as are read, and can be compared."""
    a, b = teacher.config, student.config
    if a.learns != b.learns:
        raise UserError(f"the teacher predicts {a.learns}, the student {b.learns or 'no tokens of a text'}; give a "
                        f"student that learns what the teacher does")
    one, other = (model.require_tokenizer().rust.get_vocab() for model in (teacher, student))
    if one != other or a.vocab_size != b.vocab_size:
        raise UserError(f"teacher and student have different vocabularies, of {a.vocab_size} and {b.vocab_size} "
                        f"tokens, so their scores cannot be compared; give a student with the teacher's tokenizer")
    if a.context is not None and settings.block_size > a.context:
        raise UserError(f"block_size is {settings.block_size}, but the teacher sees only {a.context} tokens; make "
                        f"block_size smaller")
    heads = [heads_of_last(config) for config in (a, b)]
    if s.attention and heads[0] != heads[1]:
        raise UserError(f"the teacher's last layer has {heads[0]} heads of attention, the student's {heads[1]}, so "
                        f"they cannot be compared; set attention to 0, or give a student with as many heads")
    if s.hidden and a.hidden_size != b.hidden_size:
        raise UserError(f"the student's hidden states have {b.hidden_size} numbers, the teacher's {a.hidden_size}, so "
                        f"they cannot be compared; set hidden to 0, or hidden_size to {a.hidden_size}")


def heads_of_last(config: Any) -> int:
    """The number of query heads in the last layer: a pruned model may have fewer there than elsewhere."""
    heads = size_of(config, "num_attention_heads")
    if not config.is_uneven:
        return heads
    return heads // config.groups * config.groups_of(config.num_hidden_layers - 1)


def require_effect(settings: Settings, s: Distillation) -> None:
    """Raise UserError if a setting changes the loss of the labels, but they do not count."""
    for name in ("label_smoothing", "z_loss"):
        if getattr(settings, name) and not s.alpha:
            raise UserError(f"{name} changes the loss of the labels, but alpha is 0; remove it, or make alpha larger")


def about_teacher(path: Path, mark: str, s: Distillation) -> dict:
    """What a run keeps, for a resume."""
    cache = str(s.cache.absolute()) if s.cache else None
    return {**asdict(s), "cache": cache, "teacher": str(path.absolute()), "fingerprint": mark}


def taught(plan: Plan, s: Distillation, about: dict, load: Callable[[], Teacher], like=None,
           progress: Progress = silent) -> Plan:
    """The plan of a run on a text, with the loss of distillation.  load() gives the teacher, if it is needed."""
    settings = plan.settings
    plan = plan._replace(about={**plan.about, KEY: about})
    if s.cache:
        if not isinstance(plan.training, Tokens):
            raise UserError("a cache needs a model that predicts the next token, because masked texts are new in each "
                            "step; remove cache")
        total = len(plan.training)
        make = functools.partial(scored, plan.training, load, about["fingerprint"], plan.state.config.vocab_size,
                                 s.cache, settings, top_k=s.top_k, temperature=s.temperature,
                                 progress=lambda done: progress(done, total))
        source = first_alone(plan.comm, make, like)
        plan.state.loss = loss_of(None, s)
        return plan._replace(training=source)
    teacher = load()
    tree = teacher.p
    if like is not None:
        tree = params.rebuild(tree, (np.asarray(a, like=like) for _, a in params.leaves(tree)))
    if settings.dtype == "bfloat16":
        tree = rounded_tree(tree)
    plan.state.loss = loss_of(Teacher(tree, teacher.c), s)
    return plan


def resume_text(plan: Plan, like=None, progress: Progress = silent) -> Plan:
    """The plan of a saved run on a text, with the loss that it had; any other plan as it is.

    Raises UserError if the teacher has changed.
    """
    if KEY not in plan.about:
        return plan
    about = plan.about[KEY]
    s = stored(about)

    def load() -> Teacher:
        model = read_teacher(Path(about["teacher"]), plan.settings.master_dtype)
        return unchanged(plan.folder, about, Teacher(model.params, model.config))

    return taught(plan, s, about, load, like, progress)


def stored(about: dict) -> Distillation:
    """The settings that a run keeps."""
    return from_stored(Distillation, {**about, "cache": Path(about["cache"]) if about["cache"] else None})


def unchanged(folder, about: dict, teacher: Teacher) -> Teacher:
    """The teacher.  Raises UserError if it is not that of the run."""
    if fingerprint(teacher.p) != about["fingerprint"]:
        raise UserError(changed_since(folder, f"the teacher {about['teacher']}"))
    return teacher


# --- runs on the rows of a task ---------------------------------------------------------------------------------------

def begin_rows(folder: Path | None, path: Path, material: Material, student: Student, s: Distillation,
               settings: Settings, policy: RunPolicy, *, lock=None, progress: Progress = silent) -> TaskRun:
    """A run on the rows of the teacher's task, from step 0.

    The student may have another tokenizer: the teacher reads the rows by its own.

    Raises UserError if the task is not that of a classifier, if the rows have other classes than the teacher, or as
    finetune.begin() does.
    """
    material.require_default(("field", "split"), "a text")
    require_effect(settings, s)
    for name in ("hidden", "attention"):
        if getattr(s, name):
            raise UserError(f"{name} compares both models at tokens of a text; with the rows of a task, remove it")
    if len(material.data) != 1:
        raise UserError(f"the rows of a task are in one file, but data names {len(material.data)}; join them")
    task, trained, notes = task_teacher(path, settings.master_dtype)
    if task.name != "classify" or scores.problem_of(trained.config) != "single_label_classification":
        raise UserError(f"{path} was trained on the task {task.name}, and not to give each text one class, so it has "
                        f"no probabilities to learn from; give a text classifier")
    teacher = pretrained.Model(trained.config, trained.params, trained.tokenizer)
    model = student_of(teacher, student, settings)
    setup = Setup(model=str(path), epochs=material.epochs, max_length=material.max_length, dev=material.validation,
                  test=material.test, test_data=material.test_data)
    source = Source(Path(material.data[0]), tuple(trained.entry.get("fields", ())))
    begun = tuning.begin(folder, task.name, source, setup, settings, policy, SearchConfig(), model=model, lock=lock)
    about = about_teacher(path, fingerprint(trained.params), s)
    return taught_rows(begun, s, about, lambda: trained, progress)._replace(notes=(*notes, *begun.notes))


def task_teacher(path: Path, dtype: str) -> tuple[Task, Trained, Sequence[str]]:
    """(task, teacher, notes) of a model that was trained on a task, in float32 or float64."""
    task, trained, notes = tuning.load(path, dtype)
    return task, trained._replace(params=decoded_tree(trained.params)), notes


def taught_rows(begun: TaskRun, s: Distillation, about: dict, load: Callable[[], Trained],
                progress: Progress = silent) -> TaskRun:
    """The run with the loss of distillation.  load() gives the teacher, if it is needed."""
    plan, rows = begun.plan, begun.parts["train"]
    plan.state.loss = class_loss_of(s)
    if s.alpha == 1:
        return begun._replace(plan=plan._replace(about={**plan.about, KEY: about}))
    names = labels_of(plan.state.config)
    made_of = {"teacher": about["fingerprint"], "classes": names,
               "data": sha256(repr([sorted(row.values.items()) for row in rows]).encode()).hexdigest()}
    dtype = np.dtype([("scores", np.float32, (len(names),))])

    def blocks(done: int) -> Iterator[np.ndarray]:
        trained = load()
        if plan.settings.dtype == "bfloat16":
            trained = trained._replace(params=rounded_tree(trained.params))
        known = labels_of(trained.config)
        if sorted(known) != sorted(names):
            raise UserError(f"the teacher knows the classes {', '.join(known)}, but the rows have "
                            f"{', '.join(names)}; give rows of the same classes")
        order = [known.index(name) for name in names]
        for first in range(done - done % ROWS, len(rows), ROWS):
            found = classify.scores_of(rows[first:first + ROWS], trained)[:, order]
            records = np.empty(len(found), dtype)
            records["scores"] = found
            yield records[max(0, done - first):]

    if folder := s.cache or (plan.folder and plan.folder / "data" / "teacher"):
        records = kept(folder, made_of, dtype, len(rows), blocks, lambda done: progress(done, len(rows)))
    else:
        records = np.concatenate(list(blocks(0)))
    examples = [{**example, "teacher_scores": record["scores"].astype(plan.state.flat.dtype)}
                for example, record in zip(plan.training.rows, records, strict=True)]
    return begun._replace(plan=plan._replace(training=Examples(examples), about={**plan.about, KEY: about}))


def resume_rows(begun: TaskRun, progress: Progress = silent) -> TaskRun:
    """A saved run on a task, with the loss that it had.  Raises UserError if the teacher's scores are gone, and the
    teacher has changed."""
    if KEY not in begun.plan.about:
        return begun
    about = begun.plan.about[KEY]

    def load() -> Trained:
        _, trained, _ = task_teacher(Path(about["teacher"]), begun.plan.settings.master_dtype)
        unchanged(begun.plan.folder, about, Teacher(trained.params, trained.config))
        return trained

    return taught_rows(begun, stored(about), about, load, progress)
