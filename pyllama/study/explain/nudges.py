"""Nudges: the loss when a single weight changes by ε, as the model computes it, beside what its gradient predicts."""
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from pyllama import params
from pyllama.errors import UserError
from pyllama.study.explain.cells import largest
from pyllama.study.explain.subject import Subject

EACH = 8                                        # weights of a matrix
STEPS = (-1.0, -0.1, 0.0, 0.1, 1.0)             # of ε, in root mean squares of the parameter


class Weight(NamedTuple):
    """A single weight, such as lm_head.weight[3,5]."""
    name: str
    place: tuple[int, ...]


class Nudge(NamedTuple):
    """The losses for five values of ε, computed in float64."""
    weight: Weight
    epsilons: list[float]
    losses: list[float]


def weights(grads: dict[str, np.ndarray], named: Iterable[str] = ()) -> list[Weight]:
    """The weights with the largest gradients of every matrix, and those that are named, such as "lm_head.weight[3,5]".

    Raises UserError for a name that is not that of a weight.
    """
    chosen = [Weight(name, index) for name, grad in grads.items() if grad.ndim >= 2 for index in largest(grad, EACH)]
    return list(dict.fromkeys([*(weight(name, grads) for name in named), *chosen]))


def weight(text: str, grads: dict[str, np.ndarray]) -> Weight:
    """The weight that a text such as "lm_head.weight[3,5]" names.  Raises UserError."""
    match = re.fullmatch(r"(\S+)\[\s*(\d+(?:\s*,\s*\d+)*)\s*\]", text.strip())
    if not match:
        raise UserError(f"nudge is {text!r}; write NAME[i,j], such as {next(iter(grads))}[0,0]")
    name, index = match[1], tuple(int(i) for i in match[2].split(","))
    if name not in grads:
        raise UserError(f"nudge names {name!r}, which is not a parameter; give one such as {', '.join([*grads][:3])}")
    shape = grads[name].shape
    if len(index) != len(shape) or any(i >= length for i, length in zip(index, shape, strict=True)):
        raise UserError(f"nudge is {text!r}, but {name} has the shape {list(shape)}; give an index within it")
    return Weight(name, index)


def nudges(subject: Subject, chosen: list[Weight], show: Callable[[int, int], object] = lambda done, total: None
           ) -> list[Nudge]:
    """Compute the loss with each of these weights changed by each ε.  show(done, total) is called after each weight.

    float32 would round the difference of two losses away, so the weights are converted to float64, which is exact.
    """
    p = params.rebuild(subject.state.p, (params.cast(leaf, "float64") for _, leaf in params.leaves(subject.state.p)))
    leaves, found = dict(params.leaves(p)), []
    loss = float(subject.loss(p)[0])
    for number, one in enumerate(chosen, 1):
        leaf = leaves[one.name]
        size, value = float(np.sqrt(np.mean(leaf ** 2))) or 1.0, leaf[one.place]
        epsilons, losses = [step * size for step in STEPS], []
        for epsilon in epsilons:
            leaf[one.place] = value + epsilon
            losses.append(float(subject.loss(p)[0]) if epsilon else loss)
        leaf[one.place] = value
        found.append(Nudge(one, epsilons, losses))
        show(number, len(chosen))
    return found
