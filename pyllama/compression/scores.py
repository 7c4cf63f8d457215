"""How much the parts of a model matter: its heads, its channels, its layers.

A head is a key/value head with its R query heads, which leave together.  The output matrix, o_proj of the heads and
down_proj of the channels, has columns w_j for each part: what the part adds to the residual is Σ_j w_j x_j.

    magnitude   √Σ w²,          over the part's columns of the output matrix and its rows of the others
    wanda       Σ |w_ij| ‖x_j‖, over the part's columns                 (Sun et al., 2023, equation 1, there for each w)
    taylor      E |∂loss/∂ξ|,   the mean over the windows of the text   (Michel et al., 2019, equation 2)

A gate ξ = 1 multiplies what the part adds.  Then ∂loss/∂ξ = Σ_ij w_ij ∂loss/∂w_ij over its columns, and to first order
the loss without the part is loss - ∂loss/∂ξ.

A layer is scored by all of its parts: their magnitudes or Wanda's scores are added, of Taylor's gates one is taken for
all of them.

Axes: L layers, G key/value heads, F channels, D model.
"""
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pyllama.op import watching
from pyllama.quantization.passes import Rows, counted, naming, run

OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


class Scores(NamedTuple):
    """A number for each part; larger numbers stay."""
    heads: list[np.ndarray]                     # [G] of each layer
    channels: list[np.ndarray]                  # [F] of each layer
    layers: np.ndarray                          # [L]


def magnitude(p: dict, c: Any, rows: Rows | None = None) -> Scores:
    """The norms of the parts' weights."""
    heads, channels = [], []
    for i, layer in enumerate(p["model"]["layers"]):
        attention, mlp = ({name: np.square(part["weight"], dtype=np.float64) for name, part in layer[of].items()
                           if name.endswith("_proj")} for of in ("self_attn", "mlp"))
        G = c.groups_of(i)
        squares = [attention["o_proj"].sum(axis=0), *(attention[f"{x}_proj"].sum(axis=1) for x in "qkv")]
        heads.append(np.sqrt(sum(of_parts(x, G) for x in squares)))
        rows = mlp["gate_proj"].sum(axis=1) + mlp["up_proj"].sum(axis=1)
        channels.append(np.sqrt(mlp["down_proj"].sum(axis=0) + rows))
    return added(heads, channels)


def wanda(p: dict, c: Any, rows: Rows) -> Scores:
    """The sizes of what the parts add to the residual of a text."""
    squares = squared_inputs(p, c, rows)

    def of_columns(i, output, w):
        return np.abs(w).sum(axis=0) * np.sqrt(squares[f"model.layers.{i}.{output}.weight"])

    return added(*each_part(p, c, of_columns))


def taylor(p: dict, c: Any, rows: Rows) -> Scores:
    """How much the loss changes without a part, to first order: the mean magnitude over the windows."""
    passes = []
    for b in range(len(rows.counted)):
        _, back = c.model.loss(**{name: a[b:b + 1] for name, a in rows.inputs.items()}, p=p, c=c)
        layers = back()["model"]["layers"]

        def of_columns(i, output, w, layers=layers):
            branch, matrix = output.split(".")
            return (w * layers[i][branch][matrix]["weight"]).sum(axis=0)

        passes.append(added(*each_part(p, c, of_columns)))
    return Scores(mean_magnitudes([each.heads for each in passes]), mean_magnitudes([each.channels for each in passes]),
                  np.mean([np.abs(each.layers) for each in passes], axis=0))


SCORES: dict[str, Callable] = {"magnitude": magnitude, "wanda": wanda, "taylor": taylor}


def each_part(p: dict, c: Any, of_columns: Callable) -> Iterator[list[np.ndarray]]:
    """The heads' numbers, then the channels': of_columns(layer, output, w) gives one for each column of w."""
    layers = p["model"]["layers"]
    attention, mlp = OUTPUTS
    yield [of_parts(of_columns(i, attention, layer["self_attn"]["o_proj"]["weight"]), c.groups_of(i))
           for i, layer in enumerate(layers)]
    yield [of_columns(i, mlp, layer["mlp"]["down_proj"]["weight"]) for i, layer in enumerate(layers)]


def of_parts(x: np.ndarray, count: int) -> np.ndarray:
    """The sums of x over so many parts of equal size, in a row."""
    return x.reshape(count, -1).sum(axis=1)


def added(heads: list[np.ndarray], channels: list[np.ndarray]) -> Scores:
    """The scores of which a layer's is the sum of its parts'."""
    return Scores(heads, channels, np.array([a.sum() + b.sum() for a, b in zip(heads, channels, strict=True)]))


def mean_magnitudes(passes: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The mean of |x| over the passes, for each layer."""
    return [np.mean(np.abs(each), axis=0) for each in zip(*passes, strict=True)]


def squared_inputs(p: dict, c: Any, rows: Rows) -> dict[str, np.ndarray]:
    """{name: ‖x_j‖² of each column j} of the output matrices, on the text."""
    name_of, squares = naming(p), {}

    def watch(op, call, inputs, options):
        name = name_of(op, inputs) or ""
        if name.endswith(tuple(f"{output}.weight" for output in OUTPUTS)):
            squares[name] = np.square(counted(inputs[0], rows.counted), dtype=np.float64).sum(axis=0)
        return call(*inputs, **options)

    with watching(watch):
        run(p, c, rows.inputs, recompute=True)
    return squares
