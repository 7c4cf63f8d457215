"""Low rank for a whole model: the matrices of its layers as two factors each, with ranks from one budget.

See low_rank.py for a matrix, and models/factored.py for the model that has them.
"""
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pyllama import machine, params
from pyllama.compression.low_rank import Decomposition, decomposed, ranks
from pyllama.compression.parts import in_own_memory, require_plain
from pyllama.errors import UserError
from pyllama.models.factored import MATRICES
from pyllama.op import watching
from pyllama.quantization.moments import Moments
from pyllama.quantization.passes import Rows, counted, naming, run


class Factorized(NamedTuple):
    """A model of factors."""
    config: Any
    params: dict
    losses: dict[str, float]                    # of each matrix that became factors: E|(W - U V) x|² over E|W x|²


@machine.one_blas_thread()
def factorized(p: dict, c: Any, share: float, rows: Rows | None = None) -> Factorized:
    """The model whose layers' matrices have this share of their numbers.

    p, c        plain parameters and the configuration of a LLaMA, Mistral, Qwen2 or Qwen3
    share       of the numbers in the matrices of all layers, at most
    rows        a text, whose products change least: see quantization/passes.py; None: the matrices change least

    Raises UserError for another family, for factors that are there already, or for a share that is out of range.

    >>> import pyllama
    >>> from pyllama.compression.factorizing import factorized
    >>> model = pyllama.create("llama", "python-docs", hidden_size=16, num_attention_heads=4, num_hidden_layers=1)
    >>> smaller = factorized(model.params, model.config, 0.5)
    >>> smaller.params["model"]["layers"][0]["mlp"]["up_proj"].keys()
    dict_keys(['first', 'second'])
    """
    require_plain(c)
    if not 0 < share < 1:
        raise UserError(f"rank is {share}; it must lie in 0 < rank < 1")
    p = in_own_memory(p)
    moments = {} if rows is None else second_moments(p, c, rows)
    decompositions = {name: decomposed(w, moments.get(name)) for name, w in params.leaves(p) if is_of_layer(name)}
    chosen = ranks(decompositions, share)
    losses = {name: d.loss(chosen[name]) / (d.loss(0) or 1.0) for name, d in decompositions.items() if chosen[name]}
    return Factorized(configured(c, chosen), with_factors(p, decompositions, chosen), losses)


def is_of_layer(name: str) -> bool:
    """Is this parameter a matrix of a layer?"""
    return name.endswith(tuple(f".{matrix}.weight" for matrix in MATRICES))


def second_moments(p: dict, c: Any, rows: Rows) -> dict[str, np.ndarray]:
    """{name: H [D D]} of the inputs of the layers' matrices, on the text."""
    name_of, moments = naming(p), dict[str, np.ndarray]()
    last: tuple[Any, Any] = (None, None)        # the input of the last product, which may be the next one's, too

    def watch(op, call, inputs, options):
        nonlocal last
        name = name_of(op, inputs) or ""
        if is_of_layer(name):
            if last[0] is not inputs[0]:
                sums = Moments(inputs[0].shape[-1])
                sums.add(counted(inputs[0], rows.counted))
                last = inputs[0], sums.estimate()
            moments[name] = last[1]
        return call(*inputs, **options)

    with watching(watch):
        run(p, c, rows.inputs, recompute=True)
    return moments


def configured(c: Any, chosen: dict[str, int]) -> Any:
    """The configuration with these ranks."""
    by_layer = {matrix: [0] * c.num_hidden_layers for matrix in MATRICES}
    for name, rank in chosen.items():
        _, _, layer, _, matrix, _ = name.split(".")
        by_layer[matrix][int(layer)] = rank
    return replace(c, ranks_by_layer=by_layer)


def with_factors(tree: Any, decompositions: dict[str, Decomposition], chosen: dict[str, int], path: str = "") -> Any:
    """The tree with factors in place of the matrices that have a rank."""
    if isinstance(tree, list):
        return [with_factors(branch, decompositions, chosen, f"{path}.{i}") for i, branch in enumerate(tree)]
    if not isinstance(tree, dict):
        return tree
    if not chosen.get(name := f"{path}.weight".lstrip(".")):
        return {key: with_factors(branch, decompositions, chosen, f"{path}.{key}") for key, branch in tree.items()}
    second, first = (np.float32(factor) for factor in decompositions[name].factors(chosen[name]))
    return {"first": {"weight": first}, "second": tree | {"weight": second}}
