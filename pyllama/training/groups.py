"""Rates of their own for some parameters: groups by name, rates by layer, and layers that start later.

A group, such as "norm:weight_decay=0.1" or "layers.0.,embed:lr=1e-5", gives the parameters whose names contain one of
its patterns other values of `lr` (the peak rate, in place of learning_rate) or `weight_decay`.  A pattern that begins
or ends with a digit matches whole numbers: layers.1 is not in layers.10.  A group's decay applies to all of its
parameters, vectors too.  Where groups overlap, the last one that sets a value wins.

Levels order the parameters of a model from the input to the output:

    0           what comes before the layers: embeddings
    1 ... L     the layers; those of a decoder follow those of its encoder
    L + 1       what comes after them: the head

Source: Howard & Ruder, "Universal language model fine-tuning", 2018, section 3.2 for rates by layer and section 3.3
for gradual unfreezing.
"""
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from pyllama.errors import UserError

KEYS = ("lr", "weight_decay")
LAYER = re.compile(r"(?P<stack>.*?)\.(?P<number>\d+)\.|(?P<cells>.*)\.\w+_l(?P<cell>\d+)(_reverse)?$")


class Group(NamedTuple):
    """Parameters by their names, and the values that are their own; None: as for all.

    >>> from pyllama.training.groups import Group
    >>> group = Group.of("layers.1,norm:lr=1e-4,weight_decay=0")
    >>> group.lr, group.weight_decay, group.matches("model.layers.1.mlp"), group.matches("model.layers.10.mlp")
    (0.0001, 0.0, True, False)
    """
    patterns: tuple[str, ...]
    lr: float | None = None
    weight_decay: float | None = None

    @classmethod
    def of(cls, text: str) -> "Group":
        """Read a group.  Raises UserError for one that is not written as above."""
        patterns, colon, assignments = text.partition(":")
        if not colon or not all(patterns.split(",")):
            raise UserError(f"the group {text!r} must be written NAMES:KEY=VALUE, such as norm:weight_decay=0")
        values = {}
        for assignment in assignments.split(","):
            key, _, value = assignment.partition("=")
            if key not in KEYS:
                raise UserError(f"the group {text!r} sets {key!r}; it can set {' and '.join(KEYS)}")
            values[key] = nonnegative(value, key, text)
        return cls(tuple(patterns.split(",")), **values)

    def matches(self, name: str) -> bool:
        """Does the group have the parameter of this name?"""
        return any(re.search(whole_numbers(pattern), name) for pattern in self.patterns)


def nonnegative(value: str, key: str, group: str) -> float:
    """The number that a group gives to a key.  Raises UserError unless it is finite and at least 0."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{key} is {value!r} in the group {group!r}; it must be a number of at least 0")
    return number


def whole_numbers(pattern: str) -> str:
    """A regular expression for a text that has this pattern, whose numbers are not parts of longer ones."""
    before = r"(?<!\d)" if pattern[0].isdecimal() else ""
    after = r"(?!\d)" if pattern[-1].isdecimal() else ""
    return before + re.escape(pattern) + after


def own_values(groups: Iterable[Group], name: str) -> Group:
    """What the groups say of one parameter."""
    values: dict[str, float] = {}
    for group in groups:
        if group.matches(name):
            values |= {key: value for key in KEYS if (value := getattr(group, key)) is not None}
    return Group((name,), **values)


def layer_of(name: str) -> tuple[str, int] | None:
    """(stack, number) of the layer that a parameter is in, or None.

    >>> from pyllama.training.groups import layer_of
    >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("lstm.weight_ih_l1"), layer_of("model.norm.weight")
    (('model.layers', 3), ('lstm', 1), None)
    """
    match = LAYER.match(name)
    if match is None:
        return None
    return match["stack"] or match["cells"], int(match["number"] or match["cell"])


def levels(names: list[str]) -> tuple[dict[str, int], int]:
    """({name: level}, L) of all parameters of a model, in the order of its tree.

    A parameter between two stacks of layers, such as the last norm of an encoder, has the level of the layer before it.
    An embedding has level 0, wherever it is.

    >>> from pyllama.training.groups import levels
    >>> levels(["embed.weight", "layers.0.w", "layers.1.w", "lm_head.weight"])
    ({'embed.weight': 0, 'layers.0.w': 1, 'layers.1.w': 2, 'lm_head.weight': 3}, 2)
    """
    number = {layer: i for i, layer in enumerate(dict.fromkeys(filter(None, map(layer_of, names))), start=1)}
    last = max((i for i, name in enumerate(names) if layer_of(name)), default=-1)
    found, level = {}, 0
    for i, name in enumerate(names):
        layer = layer_of(name)
        level = number[layer] if layer else level
        of_head = i > last and not layer
        found[name] = 0 if "embed" in name and not layer else len(number) + 1 if of_head else level
    return found, len(number)
