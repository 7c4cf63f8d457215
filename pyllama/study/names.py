"""The dotted names of parameters, such as model.layers.0.self_attn.q_proj.weight."""
from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple


class Name(NamedTuple):
    """A name, split at the number of its layer; without one, `before` is empty and `after` is all of it.

    >>> from pyllama.study.names import Name
    >>> Name.of("model.layers.0.mlp.up_proj"), Name.of("model.norm")
    (Name(before='model.layers', layer=0, after='mlp.up_proj'), Name(before='', layer=None, after='model.norm'))
    """
    before: str
    layer: int | None
    after: str

    @classmethod
    def of(cls, name: str) -> "Name":
        """The name, split."""
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if place is None:
            return cls("", None, name)
        return cls(".".join(parts[:place]), int(parts[place]), ".".join(parts[place + 1:]))


def beginning(names: Iterable[str]) -> str:
    """The parts, each with its dot, that all names begin with.

    >>> from pyllama.study.names import beginning
    >>> beginning(["model.encoder.layers", "model.embed"])
    'model.'
    """
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{parts[0]}." for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))
