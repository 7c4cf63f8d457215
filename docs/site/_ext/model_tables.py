"""The tables of the chapter on the models, read from one recorded training step of a small model of each family."""
import functools
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from docutils import nodes
from docutils.parsers.rst import Directive
from messages import table, translated

from pyllama import params
from pyllama.models import LIBRARY_ONLY, MODELS, layers
from pyllama.models.config import Config, Dimensions
from pyllama.op import watching

NAMES = {"llama": "LLaMA", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT-2", "bert": "BERT",
         "distilbert": "DistilBERT", "transformer": "Transformer", "bart": "BART", "lstm": "LSTM",
         "skipgram": "skip-gram", "glove": "GloVe"}
SIZE = {"vocab_size": 8, "context": 8, "width": 8, "layers": 1, "heads": 2, "hidden": 8, "dropout": 0.0}
SOURCE, TARGET = 5, 4                                       # tokens
STYLE = "norm_first", "sliding_window", "use_sliding_window", "positions"      # fields where small() has its own mind
OTHER_OBJECTIVES = {"seq2seq": "the target, from the source", "classification": "the class of a text",
                    "skipgram": "the words nearby", "glove": "the counts of pairs"}
NONE = "none"


class Step(NamedTuple):
    """A recorded forward pass.

    calls       (name of the op, inputs, options) in their order
    norm_first  where the residual branches have their norm; empty if layers.residual does not make them
    """
    config: Config
    parameters: dict
    calls: list[tuple[str, tuple, dict]]
    norm_first: set[bool]

    @property
    def ops(self) -> list[str]:
        return [name for name, *_ in self.calls]


@functools.cache
def step(kind: str) -> Step:
    """The loss of a small model of a family, with the family's defaults for all but sizes."""
    c = small(kind)
    p = c.model.init(c)
    calls, norm_first, inside = [], set(), layers.residual.__code__

    def record(op, call, inputs, options):
        calls.append((op.name, inputs, options))
        return call(*inputs, **options)

    def look(frame, event, _):
        if event == "call" and frame.f_code is inside:
            norm_first.add(frame.f_locals["norm_first"])

    before = sys.getprofile()                               # families choose the place by an argument, not by an op
    sys.setprofile(look)
    try:
        with watching(record):
            c.model.loss(*inputs(kind, c), p, c)
    finally:
        sys.setprofile(before)
    return Step(c, p, calls, norm_first)


def small(kind: str) -> Config:
    if kind in LIBRARY_ONLY:
        return LIBRARY_ONLY[kind][1](vocab_size=SIZE["vocab_size"], hidden_size=SIZE["width"])
    config = MODELS[kind].config
    c = config.small(Dimensions(head=next(iter(config.HEADS)), **SIZE))
    return config(**{f.name: f.default if f.name in STYLE else getattr(c, f.name) for f in fields(config)})


def inputs(kind: str, c: Config) -> tuple[np.ndarray, ...]:
    """What the loss takes before the parameters."""
    ids, few = np.arange(SOURCE)[None], np.arange(TARGET)[None]
    words = np.arange(TARGET)
    return {"lm": (ids, ids), "masked_lm": (ids, ids), "seq2seq": (ids, few), "classification": (ids, np.array([1])),
            "skipgram": (words, words, np.zeros((TARGET, 2), int)), "glove": (words, words, np.ones(TARGET))}[
        c.head or kind]


# --- the table --------------------------------------------------------------------------------------------------------

class Models(Directive):
    """What differs between the families."""
    headings = "Model", "Norm", "Positions", "Attention sees", "Activation", "Biases", "Learns", "Output matrix"

    def run(self):
        where = self.state.document.current_source
        rows = ([nodes.paragraph("", name), *(cell(texts, where) for texts in row(kind))]
                for kind, name in NAMES.items())
        return [table((translated(text, where) for text in self.headings), rows, "models")]


def cell(texts: list[str], where: str) -> nodes.container:
    """Names of code, in backticks, are the same in every language."""
    return nodes.container("", *(nodes.paragraph("", "", *parts(text), translatable=False) if text.startswith("`") else
                                 translated(text, where) for text in texts))


def parts(text: str) -> Iterator[nodes.literal]:
    for name in text.strip("`").split():
        yield nodes.literal(name, name)
        yield nodes.Text(" ")


def row(kind: str) -> list[list[str]]:
    """The texts of each cell but the first."""
    one = step(kind)
    c = one.config
    learns = c.learns or OTHER_OBJECTIVES[c.head or kind]
    tied = NONE if kind in LIBRARY_ONLY else "the embeddings" if c.copies() else "its own"
    return [norms(one), [positions(one)], seen(one), [activation(one)], [biases(one)], [learns], [tied]]


def norms(one: Step) -> list[str]:
    kinds = [name for op, name in (("rms_norm", "RMSNorm"), ("layer_norm", "LayerNorm")) if op in one.ops]
    if not kinds:
        return [NONE]
    first = one.norm_first or {"add_rms_norm" in one.ops}
    place = "before each branch" if first == {True} else "after each residual"
    heads = ["on queries and keys"] if getattr(one.config, "HEAD_NORMS", False) else []
    return [f"{kinds[0]}, {place}", *heads]


def positions(one: Step) -> str:
    if "rope" in one.ops:
        return "rotary"
    learned = any("position" in name or "wpe" in name for name, _ in params.leaves(one.parameters))
    if learned or "attention" not in one.ops:
        return "learned" if learned else "by the order of steps" if "lstm_cell" in one.ops else NONE
    return str(getattr(one.config, "positions", NONE))


def seen(one: Step) -> list[str]:
    """A text for each kind of attention."""
    found = [sight(arrays, options) for name, arrays, options in one.calls if name == "attention"]
    return list(dict.fromkeys(found)) or [NONE]


def sight(arrays: tuple, options: dict[str, Any]) -> str:
    queries, keys = arrays[0].shape[-2], arrays[1].shape[-2]
    if not options.get("causal"):
        return "all tokens" if queries == keys else "the whole source"
    window = options.get("window")
    return f"the last {window:,} tokens" if window else "earlier tokens"


def activation(one: Step) -> str:
    if "gelu" in one.ops:
        options = next(options for name, _, options in one.calls if name == "gelu")
        return "GELU, approximated" if options.get("tanh") else "GELU"
    names = {"swiglu": "SwiGLU", "relu": "ReLU", "lstm_cell": "gates"}
    return next((text for op, text in names.items() if op in one.ops), NONE)


def biases(one: Step) -> str:
    """Which of the matrices of the first layer have one; of all, where there are no layers."""
    tree = next(iter(stacks(one.parameters)), one.parameters)
    arrays = dict(params.leaves(tree))
    matrices = [name.rpartition(".")[0] for name, a in arrays.items() if a.ndim == 2]
    biased = [name for name in matrices if f"{name}.bias" in arrays or "bias_ih" in " ".join(arrays)]
    if not biased or len(biased) == len(matrices):
        return "all" if biased else NONE
    return "`" + " ".join(name.rpartition(".")[2] for name in biased) + "`"


def stacks(tree: Any) -> Iterator[dict]:
    """The first layer of each stack."""
    if isinstance(tree, list):
        yield tree[0]
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from stacks(part)


# --- chains of ops ----------------------------------------------------------------------------------------------------

class Chain(Directive):
    """The ops of a model with one layer, in the order in which they ran; those in a row are counted."""
    required_arguments = 1

    def run(self):
        kind, = self.arguments
        line = nodes.paragraph("", classes=["chain"], translatable=False)
        for number, (names, times) in enumerate(runs(step(kind).ops)):
            line += nodes.Text(" → " if number else "")
            line += list(group(names, times))
        return [line]


def group(names: tuple[str, ...], times: int) -> Iterator[nodes.Node]:
    yield nodes.Text("(" if len(names) > 1 else "")
    for number, name in enumerate(names):
        yield nodes.Text(" → " if number else "")
        yield nodes.reference("", name, refuri=f"ops/{name}.html", internal=True)
    yield nodes.Text((")" if len(names) > 1 else "") + (f" × {times}" if times > 1 else ""))


def runs(names: list[str]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Names that repeat, and pairs that repeat more than twice, each with how often it does.

    >>> list(runs(["a", "a", "b", "a", "b", "a", "b", "c", "c"]))
    [(('a',), 1), (('a', 'b'), 3), (('c',), 2)]
    """
    at = 0
    while at < len(names):
        if is_pair(names, at):
            size, times = 2, repeats(names, at, 2)
        else:
            ends = (end for end in range(at + 1, len(names)) if names[end] != names[at] or is_pair(names, end))
            size, times = 1, next(ends, len(names)) - at
        yield tuple(names[at:at + size]), times
        at += size * times


def is_pair(names: list[str], at: int) -> bool:
    """Do two different names repeat here, more than twice?"""
    return len({*names[at:at + 2]}) == 2 and repeats(names, at, 2) > 2


def repeats(names: list[str], at: int, size: int) -> int:
    times = 1
    while names[at + times * size:at + (times + 1) * size] == names[at:at + size]:
        times += 1
    return times


def setup(app):
    app.add_directive("models", Models)
    app.add_directive("chain", Chain)
    return {"parallel_read_safe": True}
