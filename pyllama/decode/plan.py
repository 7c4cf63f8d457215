"""A static plan of a decoder: what a new token passes through, as a list of steps over a few buffers.

A model's module calls one op after the other and finds out anew for every token what comes next: a dynamic graph.  A
plan is written down once, from the configuration and the parameters, and one call of csrc/cpu/decode.c runs it.

A buffer has a row for each new token.  A step reads some columns of one buffer and writes some of others:

    Embed       token embeddings and, where the family has them, position embeddings
    Normalize   a norm of each row
    Product     a product with up to three matrices [E D] of one input, whose norm it may take first; biases; an
                activation; the residual may be what it adds to
    Attend      norms of heads, rotation, the new keys and values into the cache, attention
    Cross       attention to the encoder's memory, whose keys and values are computed once
    Pick        the rows after which scores are wanted

The weights are arrays, or EncodedArrays, which stay in their storage format.
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from pyllama.params import leaves

SCORES = "scores"
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_python": "gelu", "tanh": "tanh", "silu": "silu", "swish": "silu",
               **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "tanh-gelu")}


class Matrix(NamedTuple):
    """A matrix of the parameters."""
    name: str
    weight: Any                             # [E D]
    bias: Any = None                        # [E]


class Norm(NamedTuple):
    """A norm of the rows of an input."""
    kind: str                               # "rms" or "layer"
    weight: Any                             # [D]
    bias: Any                               # [D], None for rms
    eps: float


class Embed(NamedTuple):
    """to = scale · table[ids] + positions[places]"""
    to: str
    table: Matrix
    scale: float = 1.0


class Normalize(NamedTuple):
    """to = norm(read)"""
    read: str
    to: str
    norm: Norm
    wanted: bool = False


class Product(NamedTuple):
    """to = norm(read) wᵀ + b, side by side for each matrix; then to = activation(to), or += if it adds.

    "swiglu" reads the products with both matrices, g and u; the activations write the buffer `active`.  With the matrix
    of g alone, its product goes `into` the last columns, and u is in the first ones.
    """
    read: str
    to: str
    matrices: tuple[Matrix, ...]
    norm: Norm | None = None
    activation: str = ""
    active: str = ""
    adds: bool = False
    wanted: bool = False
    into: tuple[int, int] | None = None     # (the first column, the columns of `to`) if it writes a part of it


class Attend(NamedTuple):
    """to = attention of the queries in `read` [(H + 2 G) K] to the keys so far; the new ones go to the cache."""
    read: str
    to: str
    layer: int
    heads: int                              # H
    groups: int                             # G
    width: int                              # K
    window: int | None = None               # keys that a query sees, itself included; None: all
    q_norm: Norm | None = None              # of each head
    k_norm: Norm | None = None
    interleaved: bool = False               # layout of the rotation: see ops/rope.py


class Cross(NamedTuple):
    """to = attention of the queries in `read` [H K] to the memory"""
    read: str
    to: str
    layer: int
    heads: int
    width: int


class Pick(NamedTuple):
    """to = the wanted rows of read"""
    read: str
    to: str


Step = Embed | Normalize | Product | Attend | Cross | Pick


class Tables(NamedTuple):
    """What a plan reads at a position, for positions 0, 1, ...; None: nothing."""
    cos: Any = None                         # [places K/2]
    sin: Any = None
    positions: Any = None                   # [places D]


@dataclass(frozen=True)
class Plan:
    """The steps of a decoder, and what they need.

    tables      tables(places, dtype) gives the Tables of so many positions
    limit       (the number of positions, the configuration's name for it), if positions are learned
    cross       the parameters of each layer's attention to the memory, with k_proj and v_proj
    """
    steps: tuple[Step, ...]
    vocabulary: int
    tables: Callable[[int, Any], Tables] = lambda places, dtype: Tables()
    limit: tuple[int, str] | None = None
    cross: tuple[dict, ...] = ()

    @property
    def attention(self) -> list[Attend]:
        """The Attend of each layer."""
        return [step for step in self.steps if isinstance(step, Attend)]

    @property
    def widths(self) -> dict[str, int]:
        """The buffers and their columns."""
        widths: dict[str, int] = {}
        for step in self.steps:
            widths |= {name: columns for name, columns in written(step, widths) if name != SCORES}
        return widths

    @property
    def groups(self) -> list[list[str]]:
        """The buffers in groups, of which no step needs two."""
        needed = occupied(self.steps)
        groups: list[list[str]] = []
        for name in self.widths:
            free = (group for group in groups if not any(needed[name] & needed[other] for other in group))
            if group := next(free, None):
                group.append(name)
            else:
                groups.append([name])
        return groups

    def narrowed(self) -> "Plan":
        """The plan that computes only the wanted rows once no other row depends on the rest.

        Keys and values of all rows are needed, but after the last attention a row passes through by itself.
        """
        last = max(i for i, step in enumerate(self.steps) if isinstance(step, Attend | Cross))
        before, after = self.steps[:last + 1], self.steps[last + 1:]
        live = [name for name in live_before(after) if name != SCORES]
        wanted = (only_wanted(step, {*self.widths}) for step in after)
        return replace(self, steps=(*before, *(Pick(name, f"last {name}") for name in live), *wanted))


def scores(read: str, norm: Norm | None, table: dict, bias: Any = None) -> list[Step]:
    """The steps to the scores of all tokens: see models.layers.token_scores."""
    head = Matrix("head", table["weight"], table.get("bias", bias))
    if "projection" not in table:
        return [Product(read, SCORES, (head,), norm)]
    return [Product(read, "p", (Matrix("projection", table["projection"].T),), norm), Product("p", SCORES, (head,))]


def written(step: Step, widths: dict[str, int]) -> Iterator[tuple[str, int]]:
    """(buffer, columns) of all that a step writes, given the columns of the buffers it reads."""
    if isinstance(step, Embed):
        yield step.to, step.table.weight.shape[1]
    elif isinstance(step, Product):
        yield step.to, step.into[1] if step.into else sum(matrix.weight.shape[0] for matrix in step.matrices)
        if step.active:
            yield step.active, step.matrices[0].weight.shape[0]
    elif isinstance(step, Attend | Cross):
        yield step.to, step.heads * step.width
    else:
        yield step.to, widths[step.read]


def live_before(steps: tuple[Step, ...]) -> list[str]:
    """The buffers whose contents these steps read from before."""
    fresh: set[str] = set()
    live: list[str] = []
    for step in steps:
        live += [name for name in reads(step) if name not in fresh and name not in live]
        fresh |= writes(step)
    return live


def reads(step: Step) -> list[str]:
    """The buffers whose contents a step reads."""
    before = [step.to] if isinstance(step, Product) and (step.adds or (step.into and step.into[0])) else []
    return before if isinstance(step, Embed) else [step.read, *before]


def writes(step: Step) -> set[str]:
    """The buffers that a step writes."""
    return {name for name, _ in written(step, dict.fromkeys(reads(step), 0))}


def occupied(steps: tuple[Step, ...]) -> dict[str, set[int]]:
    """The steps during which the contents of each buffer are needed.  A step overwrites the whole of what it writes."""
    needed: dict[str, set[int]] = {}
    live: set[str] = set()                              # what later steps read
    for i, step in reversed([*enumerate(steps)]):
        for name in live.union(reads(step), writes(step)):
            needed.setdefault(name, set()).add(i)
        live = (live - writes(step)).union(reads(step))
    return needed


def only_wanted(step: Any, buffers: set[str]) -> Step:
    """The step over the wanted rows alone, in buffers of their own."""
    names = {field: f"last {name}" for field in ("read", "to", "active")
             if (name := getattr(step, field, "")) in buffers}
    return step._replace(wanted=True, **names)


def bytes_of(weight: Any) -> int:
    """The bytes of a matrix, as it is stored."""
    return int(weight.nbytes)


def described(step: Step) -> tuple[str, str]:
    """(what a step is, how it goes through the buffers), in words for a table."""
    if isinstance(step, Embed):
        return "embed", f"{step.to} = {step.table.name}[token]"
    if isinstance(step, Normalize):
        return f"{step.norm.kind} norm", f"{step.to} = norm({step.read})"
    if isinstance(step, Attend):
        return "attend", f"{step.to} = {step.heads} heads of {step.read}, with the cache"
    if isinstance(step, Cross):
        return "cross", f"{step.to} = {step.heads} heads of {step.read}, with the memory"
    if isinstance(step, Pick):
        return "pick", f"{step.to} = the wanted rows of {step.read}"
    names = ", ".join(matrix.name for matrix in step.matrices)
    source = f"norm({step.read})" if step.norm else step.read
    to = step.active if step.active else step.to
    call = f"{step.activation}({source} · [{names}])" if step.activation else f"{source} · [{names}]"
    return "product", f"{to} {'+=' if step.adds else '='} {call}"


def dtype_of(params: Any) -> np.dtype:
    """The precision of a plan over these parameters: that of its plain arrays, float32 beside encoded matrices."""
    kinds = {leaf.dtype for _, leaf in leaves(params) if isinstance(leaf, np.ndarray)}
    return np.result_type(*kinds) if kinds else np.dtype(np.float32)
