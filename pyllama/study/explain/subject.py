"""What is explained: a model, a text or a row of its task as its batch, and the optimizer that updates it."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import pretrained
from pyllama.errors import UserError, counted
from pyllama.rng import generator
from pyllama.study.explain import rows
from pyllama.study.explain.rows import Given
from pyllama.study.reading import ids_of
from pyllama.tasks import distill, finetune
from pyllama.tasks.task import Task, labels_of
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint, objectives
from pyllama.training.loop import Settings, State, start
from pyllama.training.run import from_stored

FRESH = Settings(schedule="constant", warmup_steps=0)       # of a model without a run


@dataclass(eq=False)
class Subject:
    """A model at a step, with a batch.

    inputs      the batch, as the model's loss() takes it: ids, labels, perhaps a mask
    task        what the batch is a row of; None: it is a plain text
    resumed     the optimizer state and the settings are those of a run
    """
    name: str
    state: State
    settings: Settings
    tokenizer: Tokenizer
    given: Given
    inputs: dict[str, np.ndarray]
    task: Task | None
    resumed: bool
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str]:
        """The names of the scores of a head that has some."""
        return labels_of(self.state.config) if self.task and self.task.labels else []

    def loss(self, p: dict) -> tuple[Any, Callable]:
        """(loss, back) of the batch with these parameters, as in a training step without dropout."""
        return self.state.model.loss(**self.inputs, p=p, c=self.state.config, z_loss=self.settings.z_loss,
                                     label_smoothing=self.settings.label_smoothing)


def load(path: Path, given: Given | str, step: int | None = None, tokenizer: Path | None = None) -> Subject:
    """The model at `path`, in the precision of its run (of bfloat16, of its weights), with the text as its batch.

    given       a text and, for a model that was trained on a task, the other parts of a row
    step        the checkpoint of this step of a run; None: the latest
    tokenizer   see pretrained.load()

    Raises UserError if there is no such model or step, or if it cannot learn from this text.
    """
    given = Given(given) if isinstance(given, str) else given
    name, path = path.resolve().name, checkpoint.followed(path)
    path = path if step is None or not path.exists() else of_step(path, step)
    saved = checkpoint.load(path) if path.is_dir() else None
    if saved and saved.adapter is not None:
        raise UserError(f"{saved.folder} has adapters, but a step of a whole model is explained; merge them with their "
                        f"base, and explain the merged model")
    stored = saved.trainer.get("settings") if saved else None
    settings = from_stored(Settings, stored) if stored else FRESH
    settings = replace(settings, dtype=settings.master_dtype)
    model = pretrained.load(saved.folder if saved else path, tokenizer, settings.dtype)
    words, notes = model.require_tokenizer(), (*(saved.notes if saved else ()), *model.notes)
    if saved and distill.KEY in saved.trainer.get("about", {}):
        notes = *notes, "the run learns from a teacher, too; this is a step by the labels alone"
    task = finetune.task_of_config(model.config.to_dict())
    if task and (task.head != "lm" or given.target is not None):    # a writer of answers also continues plain text
        inputs, more = rows.batch(task, given, finetune.trained(model.config, model.params, words))
    else:
        task, inputs, more = None, batch(given, model.config, words, settings.seed), ()
    state = start(model.config, settings, model.params)
    if saved and saved.optimizer:
        state.load_optimizer(saved.optimizer)
        state.step = saved.step
    return Subject(name, state, settings, words, given, inputs, task, bool(saved and saved.optimizer), (*notes, *more))


def of_step(run: Path, step: int) -> Path:
    """The newest checkpoint of this step of a run.  Raises UserError if there is none."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"step is {step}, but {run} is not a run; give a run, or leave step out")
    steps = {checkpoint.order(found)[0]: found for found in reversed(checkpoint.in_order(folder))}
    if not steps:
        raise UserError(f"{run} holds no checkpoint yet; train until the first one is saved")
    if step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; it has those of {', '.join(map(str, sorted(steps)))}")
    return steps[step]


def batch(given: Given, config: Any, tokenizer: Tokenizer, seed: int = 0) -> dict[str, np.ndarray]:
    """The text as a batch of one row, with what the model learns from it as labels.

    Raises UserError if the model does not learn from plain text alone, or if the text is too short or too long.
    """
    objectives.objective_of(config, tokenizer)              # raises if it does not learn from plain text
    if given.extras:
        raise UserError(f"the model learns from plain text, which has no {min(given.extras)}; remove it")
    continues = objectives.continues(config)
    ids = ids_of(given.text, config, tokenizer, unread=int(continues))
    if ids.size < 2:
        raise UserError(f"the text has {counted(ids.size, 'token')}; give one of at least 2")
    if continues:
        return {"ids": ids, "labels": ids}
    damage = objectives.DAMAGES[config.learns](config, tokenizer)
    for attempt in range(objectives.ATTEMPTS):
        damaged = damage(ids, generator(seed, "explain", attempt))
        if damaged.targets:
            return damaged.inputs
    raise UserError("none of the tokens of the text was masked; give a longer one")
