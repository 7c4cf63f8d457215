"""What is explained: a model, a text as its batch, and the optimizer that updates it."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import pretrained
from pyllama.errors import UserError, counted
from pyllama.rng import generator
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint, objectives
from pyllama.training.loop import Settings, State, start
from pyllama.training.run import from_stored

FRESH = Settings(schedule="constant", warmup_steps=0)       # of a model without a run


@dataclass(eq=False)
class Subject:
    """A model at a step, with a batch.

    inputs      the batch, as the model's loss() takes it: ids, labels, perhaps a mask
    resumed     the optimizer state and the settings are those of a run
    """
    name: str
    state: State
    settings: Settings
    tokenizer: Tokenizer
    inputs: dict[str, np.ndarray]
    resumed: bool
    notes: tuple[str, ...] = ()

    def loss(self, p: dict) -> tuple[Any, Callable]:
        """(loss, back) of the batch with these parameters, as in a training step without dropout."""
        return self.state.model.loss(**self.inputs, p=p, c=self.state.config, z_loss=self.settings.z_loss,
                                     label_smoothing=self.settings.label_smoothing)


def load(path: Path, text: str, step: int | None = None, tokenizer: Path | None = None) -> Subject:
    """The model at `path`, in the precision of its run, with the text as its batch.

    step        the checkpoint of this step of a run; None: the latest
    tokenizer   see pretrained.load()

    Raises UserError if there is no such model or step, or if it cannot learn from this text.
    """
    name, path = path.resolve().name, checkpoint.followed(path)
    path = path if step is None or not path.exists() else of_step(path, step)
    saved = checkpoint.load(path) if path.is_dir() else None
    stored = saved.trainer.get("settings") if saved else None
    settings = from_stored(Settings, stored) if stored else FRESH
    model = pretrained.load(saved.folder if saved else path, tokenizer, settings.dtype)
    words = model.require_tokenizer()
    inputs = batch(text, model.config, words, settings.seed)
    state = start(model.config, settings, model.params)
    if saved and saved.optimizer:
        state.optimizer.load(saved.optimizer)
        state.step = saved.step
    notes = (*(saved.notes if saved else ()), *model.notes)
    return Subject(name, state, settings, words, inputs, bool(saved and saved.optimizer), notes)


def of_step(run: Path, step: int) -> Path:
    """The newest checkpoint of this step of a run.  Raises UserError if there is none."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"step is {step}, but {run} is not a run; give a run, or leave step out")
    steps = {checkpoint.order(found)[0]: found for found in reversed(checkpoint.in_order(folder))}
    if step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; it has those of {', '.join(map(str, sorted(steps)))}")
    return steps[step]


def batch(text: str, config: Any, tokenizer: Tokenizer, seed: int = 0) -> dict[str, np.ndarray]:
    """The text as a batch of one row, with what the model learns from it as labels.

    Raises UserError if the model does not learn from plain text, or if the text is too short or too long.
    """
    objectives.objective_of(config, tokenizer)              # raises if it does not learn from plain text
    continues, frame = objectives.continues(config), special.frame(tokenizer)
    behind = [] if continues else frame.behind
    ids = np.array([[*frame.before, *tokenizer.encode(text), *behind]], int)
    count, room = ids.shape[1], config.context
    if count < 2:
        raise UserError(f"the text has {counted(count, 'token')}; give one of at least 2")
    if room is not None and count - continues > room:
        raise UserError(f"the text has {counted(count, 'token')}, but the model sees only {room} "
                        f"(max_position_embeddings); shorten it")
    if continues:
        return {"ids": ids, "labels": ids}
    damage = objectives.DAMAGES[config.learns](config, tokenizer)
    for attempt in range(objectives.ATTEMPTS):
        damaged = damage(ids, generator(seed, "explain", attempt))
        if damaged.targets:
            return damaged.inputs
    raise UserError("none of the tokens of the text was masked; give a longer one")
