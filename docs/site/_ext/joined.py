"""What depends on what: each op, and the derivations, tests, kernels and models that are joined with it.

A model is joined with the ops that it calls, which is measured: its loss is computed at a small size, with every head.
"""
import functools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import users

import pyllama.ops  # noqa: F401                            registers all ops
from pyllama.models import LIBRARY_ONLY, MODELS
from pyllama.models.config import Config, Dimensions
from pyllama.op import watching
from pyllama.rng import Draw
from pyllama.study import derivation

FAMILIES = MODELS | LIBRARY_ONLY
EVERY_OP = re.compile(r'parametrize\("\w+", (sorted\()?(op\.)?OPS\b')
SEE = re.compile(r"\bsee (\w+)")
VOCABULARY, ROWS, LENGTH, END = 16, 2, 6, 2


def joined(name: str) -> dict[str, list[str]]:
    """Kind -> the names of this kind that are joined with the op."""
    return {"derivation": derivations(name), "test": tests(name), "kernel": files(name, users.KERNELS),
            "model": models(name)}


@functools.cache
def models(name: str) -> list[str]:
    return [kind for kind in FAMILIES if name in calls(kind)]


def derivations(name: str) -> list[str]:
    """Its own, those that it quotes, and those that quote it."""
    return [other for other in derivation.names() if other == name or other in quoted(name) or name in quoted(other)]


@functools.cache
def quoted(name: str) -> set[str]:
    """The derivations that a derivation, or one of its steps, tells the reader to see."""
    if name not in derivation.names():
        return set()
    those, module = derivation.load(name)
    texts = [text for one in those for text in (derivation.docstring(one, module), *(step.why for step in one.steps))]
    return {other for other in SEE.findall("\n".join(texts)) if other in derivation.names()} - {name}


def tests(name: str) -> list[str]:
    """The files that name the op, and those that run the whole of something that it is part of."""
    part_of = {"test_derivations.py": name in derivation.names(), "test_models.py": bool(models(name)),
               "test_cuda_kernels.py": f"{name}.cu" in files(name, users.KERNELS)}
    return sorted({*files(name, users.TESTS), *of_every_op(), *(file for file, is_part in part_of.items() if is_part)})


@functools.cache
def of_every_op() -> list[str]:
    return [path.name for path in users.files(users.TESTS) if EVERY_OP.search(path.read_text("utf-8"))]


def files(name: str, heading: str) -> list[str]:
    return [Path(path).name for path in users.users(name).get(heading, [])]


# --- the ops that a model calls ---------------------------------------------------------------------------------------

@functools.cache
def calls(kind: str) -> set[str]:
    """The ops that run while a small model of this family computes its loss, as in training."""
    found = set()

    def watch(op, call, inputs, options):
        found.add(op.name)
        return call(*inputs, **options)

    module = FAMILIES[kind][0]
    with watching(watch):
        for c in configs(kind):
            draw = {} if kind in LIBRARY_ONLY else {"draw": Draw((0,))}
            module.loss(*inputs(kind, c.head), module.init(c), c, **draw)
    return found


def configs(kind: str) -> Iterable[Config]:
    """One for each head that has a loss."""
    config = FAMILIES[kind][1]
    if kind in LIBRARY_ONLY:
        return [config(vocab_size=VOCABULARY)]
    return [config.small(Dimensions(vocab_size=VOCABULARY, context=LENGTH, head=head))
            for head in config.HEADS if head != "none"]


def inputs(kind: str, head: str) -> tuple[np.ndarray, ...]:
    """What the loss takes in front of the parameters."""
    ids = np.random.default_rng(0).integers(END + 1, VOCABULARY, (ROWS, LENGTH))
    ids[:, -1] = END                                        # BART's classifier reads this token
    words, contexts = ids
    if kind == "skipgram":
        return words, contexts, ids.T
    if kind == "glove":
        return words, contexts, np.ones(LENGTH)
    labels = {"classification": np.zeros(ROWS, int), "tagging": ids % 2, "span": np.zeros((ROWS, 2), int)}
    return ids, labels.get(head, ids)
