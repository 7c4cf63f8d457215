"""How far the gradient of a model's loss reaches: its norm at each parameter, and units that pass nothing back."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama import machine, memory, params
from pyllama.errors import UserError
from pyllama.study.explain.recording import Recording, record
from pyllama.study.explain.rows import Given
from pyllama.study.explain.subject import batch
from pyllama.study.explain.texts import nearest
from pyllama.study.explain.views import units
from pyllama.study.names import Name, beginning
from pyllama.study.reading import ids_of, model_at
from pyllama.text.tokenizer import Tokenizer

ANSWERS = {"classification": -1, "tagging": -1, "span": 1}  # head: axis of the scores of which one is chosen


class Norm(NamedTuple):
    """The norm of a parameter's gradient.

    name        of the parameter, such as model.layers.0.mlp.up_proj.weight
    value       √Σ g²
    """
    name: str
    value: float

    @property
    def layer(self) -> int | None:
        """The number of its layer; None outside the layers."""
        return Name.of(self.name).layer


class Units(NamedTuple):
    """The units of an activation, and how many of them pass no gradient back at any token of the text.

    name    of the parameter that the units were last computed with
    """
    name: str
    total: int
    dead: int


class Flow(NamedTuple):
    """The gradient of a loss, in nats, on a text."""
    loss: float
    norms: list[Norm]
    units: list[Units]


@memory.arena()
@machine.one_blas_thread()
def gradient_flow(path: Path, text: str, tokenizer: Path | None = None) -> tuple[Flow, tuple[str, ...]]:
    """(the Flow of the model at `path` on a text, notes), without dropout.

    The loss is that of the model's training on text; of a classifier, that of its own answer.  Raises UserError if
    there is no such model, or if it has no such loss.
    """
    model = model_at(path, tokenizer)
    config = model.config
    inputs = lesson(text, config, model.params, model.require_tokenizer())
    recording = record(lambda p: config.model.loss(**inputs, p=p, c=config), model.params)
    norms = [Norm(name, float(np.linalg.norm(recording.grads[name].astype(np.float64))))
             for name, _ in params.leaves(model.params) if name in recording.grads]
    return Flow(recording.loss, norms, units_of(recording)), model.notes


def lesson(text: str, config: Any, p: dict, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The text as inputs of the model's loss, with labels.  Raises UserError."""
    if config.learns is not None or config.head not in ANSWERS:
        return batch(Given(text), config, tokenizer)               # raises if the model does not learn from plain text
    if getattr(config, "num_labels", 2) == 1:
        raise UserError("the model answers with a number, and its loss needs the true one; give a model of text or of "
                        "classes")
    ids = ids_of(text, config, tokenizer)
    z, _ = config.model.logits(ids, p, config)
    return {"ids": ids, "labels": z.argmax(axis=ANSWERS[config.head])}


def units_of(recording: Recording) -> list[Units]:
    """The Units of each activation, in the order of the forward pass."""
    return [Units(nearest(recording.calls[found["call"]], 0, recording).removesuffix(".weight"), found["units"],
                  found["dead"]) for found in units(recording)]


def kinds(norms: Sequence[Norm]) -> list[str]:
    """A name for each norm that is the same for the same parameter of all layers.

    >>> from pyllama.study.gradient_flow import Norm, kinds
    >>> kinds([Norm(name, 1.0) for name in ("model.embed.weight", "model.h.0.up.weight", "model.h.1.up.weight")])
    ['model.embed', 'up', 'up']
    """
    names = [Name.of(norm.name.removesuffix(".weight")) for norm in norms]
    stacks = {name.before for name in names if name.layer is not None}
    shared = beginning(stacks) if len(stacks) > 1 else "".join(stacks)
    return [f"{name.before.removeprefix(shared)}.{name.after}".removeprefix(".") for name in names]
