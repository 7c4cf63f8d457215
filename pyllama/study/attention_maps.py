"""The attention weights of a model that reads a text."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError, counted
from pyllama.study.explain.formulas import attention_weights
from pyllama.study.explain.recording import Recording, record
from pyllama.study.explain.texts import before, embeddings, module
from pyllama.study.names import Name, beginning
from pyllama.study.reading import ids_of, model_at
from pyllama.study.spelling import spelled
from pyllama.text.tokenizer import Tokenizer


class Map(NamedTuple):
    """The weights of one attention.

    name            of its parameters, such as model.layers.0.self_attn
    p               [H T S] a row sums to 1: how much token t takes from each s
    queries, keys   the T and S tokens, as text
    run             its number among all, if several have the same parameters
    """
    name: str
    p: np.ndarray
    queries: list[str]
    keys: list[str]
    run: int | None = None

    @property
    def layer(self) -> int:
        """The number of its layer."""
        return (Name.of(self.name).layer or 0) if self.run is None else self.run


@memory.arena()
@machine.one_blas_thread()
def attention_maps(path: Path, text: str, tokenizer: Path | None = None) -> tuple[list[Map], tuple[str, ...]]:
    """(the Map of each attention, in the order of the forward pass; notes) of the model at `path`.

    A decoder that writes reads the same text, as if to repeat it.  Raises UserError if there is no such model, or if it
    cannot read the text or has no attention.
    """
    model = model_at(path, tokenizer).expanded()            # each run of a shared layer has a map of its own
    words, config = model.require_tokenizer(), model.config
    ids = ids_of(text, config, words)
    if not ids.size:
        raise UserError("the text has no token; give a longer one")
    recording = record(lambda p: (forward(ids, p, config), dict), model.params)
    of = embeddings(recording)
    maps = [of_call(recording, i, of, words) for i, call in enumerate(recording.calls) if call.op.name == "attention"]
    if not maps:
        raise UserError(f"the family {config.TYPE} has no attention; give a model of another family")
    if len({one.name for one in maps}) < len(maps):                         # of an ALBERT
        maps = [one._replace(run=i) for i, one in enumerate(maps)]
    return maps, model.notes


def forward(ids: np.ndarray, p: dict, config: Any) -> float:
    """Run the model; returns 0, because there is no loss."""
    if config.head == "none":
        config.model.hidden(ids, p[config.ROOT], config)
    else:
        config.model.logits(ids, p, config, **({"labels": ids} if config.head == "seq2seq" else {}))
    return 0.0


def of_call(recording: Recording, number: int, of: list[int | None], tokenizer: Tokenizer) -> Map:
    """The Map of call `number`, an attention.  of: the embedding of each call, see texts.embeddings()."""
    call = recording.calls[number]
    _, G, R, T, _ = call.inputs[0].shape
    read = (recording.calls[one or 0].inputs[0] for one in (of[number], of[before(call, 1)]))
    queries, keys = ([spelled(tokenizer, i) for i in ids[0]] for ids in read)
    return Map(module(call, recording), attention_weights(call).p[0].reshape(G * R, T, -1), queries, keys)


def chosen(maps: Sequence[Map], layer: int | None, head: int | None) -> list[Map]:
    """The maps of one layer and one head; None: of all.  Raises UserError if there is none."""
    layers = sorted({one.layer for one in maps})
    if layer is not None and layer not in layers:
        raise UserError(f"layer is {layer}; the model has {counted(len(layers), 'layer')}, 0 to {layers[-1]}")
    heads = max(len(one.p) for one in maps)
    if head is not None and not 0 <= head < heads:
        raise UserError(f"head is {head}; a layer has {counted(heads, 'head')}, 0 to {heads - 1}")
    return [one if head is None else one._replace(p=one.p[head:head + 1])
            for one in maps if (layer is None or one.layer == layer) and (head is None or head < len(one.p))]


def titles(maps: Sequence[Map]) -> list[str]:
    """A short title for each map: its layer or, where a layer has several, its name without what all names begin with.

    >>> from pyllama.study.attention_maps import Map, titles
    >>> titles([Map(f"model.layers.{i}.self_attn", None, [], []) for i in range(2)])
    ['layer 0', 'layer 1']
    """
    layers = [one.layer for one in maps]
    if len(set(layers)) == len(layers):
        return [f"layer {layer}" for layer in layers]
    names = [one.name for one in maps]
    return [name.removeprefix(beginning(names)) for name in names]
