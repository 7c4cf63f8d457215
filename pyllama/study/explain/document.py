"""The document of a recorded step: all that the page shows, as a value for JSON.

    {"version": 2, "model": {...}, "given": {"text", ...}, "loss": ..., "order": [...],
     "calls": [{"op", "line", "parameter", "options", "inputs": [ARRAY], "outputs": [ARRAY],
                "norms", "gradientNorms": of the outputs}],
     "tokenLosses", "classes": see losses.py, "texts", "attention": see texts.py,
     "flow", "units", "time", "update", "nudges": see views.py}

    ARRAY   {"name", "shape", "rows", "columns": the cells shown, "whole": whether these are all,
             "values", "gradients": of the cells, row by row; gradients is null for integers,
             "place": the number of the input or output of the op,
             "reads": [[call, output]], the calls that it was made from,
             "parameter": the name of one, "transposed": whether the op reads its transpose
             input:  "isSum": whether it is the sum of the outputs that it was made from, if these are several,
                     "products": {"method", "groups", "count", "cells": [[number, left, right, number, ...]]}
             output: "adds": [{"call", "index", "values" or null}], the gradients that were added to "gradients"}
"""
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllama import params
from pyllama.study.explain import losses, texts, views
from pyllama.study.explain.cells import Block, block, number, numbers
from pyllama.study.explain.formulas import double
from pyllama.study.explain.nudges import Nudge
from pyllama.study.explain.products import largest, products
from pyllama.study.explain.recording import Call, Recording
from pyllama.study.explain.subject import Subject
from pyllama.study.explain.tracing import Source
from pyllama.study.explain.update import Update

VERSION = 2
SIDE = 64                                       # rows and columns of a block, at most
ROOM = ((SIDE, 8), (SIDE, 3), (48, 3), (32, 3), (24, 3), (16, 3), (12, 3), (8, 3), (6, 2), (4, 2), (2, 1), (1, 1))
OF_CELL, OF_PRODUCT, OF_ARRAY = 24, 24, 400     # bytes of JSON, about


def document(subject: Subject, recording: Recording, update: Update, nudges: list[Nudge], most: int, each: int) -> dict:
    """The document, with blocks of at most `most` x `most` cells and `each` products of a cell."""
    weights = [one.weight for one in nudges]
    return {"version": VERSION, "loss": number(recording.loss, 9), "order": recording.order,
            "model": about(subject), "given": {"text": subject.given.text, **subject.given.extras},
            "calls": [as_call(one, recording, most, each) for one in recording.calls],
            "tokenLosses": losses.token_losses(subject, recording), "classes": losses.classes(subject, recording),
            "texts": texts.texts(subject, recording), "attention": texts.attention(recording),
            "flow": views.flow(recording, update), "units": views.units(recording),
            "time": views.through_time(recording),
            "update": views.updated(update, weights),
            "nudges": views.nudged(nudges, recording.grads)}


def rooms(recording: Recording, limit: int) -> Iterator[tuple[int, int]]:
    """(most, each) of document(), the largest first, of those whose calls may take at most `limit` bytes."""
    for most, each in ROOM:
        size = 0
        for call in recording.calls:
            for k, x in enumerate((*call.inputs, *call.outputs)):
                if x is not None:
                    rows, columns = np.size(x) // max(1, np.shape(x)[-1] if np.ndim(x) else 1), np.shape(x)[-1:]
                    cells = min(most, rows) * min([most, *columns])
                    size += OF_ARRAY + cells * (OF_CELL + (each * OF_PRODUCT if k < len(call.inputs) else 0))
        if size <= limit or most == 1:
            yield most, each


def about(subject: Subject) -> dict:
    config, state = subject.state.config, subject.state
    return {"name": subject.name, "type": config.TYPE, "task": subject.task.name if subject.task else None,
            "head": config.head, "learns": config.learns, "parameters": params.size(state.p),
            "dtype": str(state.flat.dtype), "step": state.step, "resumed": subject.resumed}


def as_call(call: Call, recording: Recording, most: int, each: int) -> dict:
    inputs = [as_input(call, k, recording, most, each) for k, x in enumerate(call.inputs) if x is not None]
    outputs = [as_output(call, k, recording, most) for k in range(len(call.outputs))]
    named = [source.name for sources in call.reads for source in sources if source.kind == "parameter"]
    return {"op": call.op.name, "line": call.op.shapes, "parameter": named[0] if named else None,
            "options": {name: str(value) for name, value in call.options.items() if value is not None},
            "inputs": inputs, "outputs": outputs, "norms": views.norms(call.outputs),
            "gradientNorms": views.norms(call.dys)}


def as_array(name: str, place: int, x: Any, gradient: Any, shown: Block, reads: tuple[Source, ...]) -> dict:
    """The ARRAY without what inputs or outputs have besides."""
    x = np.asarray(x)
    if x.dtype.kind == "b":
        x = x.astype(int)
    return {"name": name, "place": place, "shape": list(x.shape),
            "rows": shown.rows.tolist(), "columns": shown.columns.tolist(),
            "whole": len(shown.rows) * len(shown.columns) == x.size, "values": numbers(shown.of(x)),
            "gradients": None if gradient is None else numbers(shown.of(gradient)),
            "reads": [[source.call, source.place] for source in reads if source.kind == "output"],
            "parameter": next((source.name for source in reads if source.kind == "parameter"), None),
            "transposed": is_transposed(x)}


def as_input(call: Call, k: int, recording: Recording, most: int, each: int) -> dict:
    x, gradient = np.asarray(call.inputs[k]), call.grads[k] if k < len(call.grads) else None
    shown = block(np.zeros(x.shape), SIDE) if gradient is None else block(important(x, call, k, recording), most)
    array = as_array(call.op.inputs[k].name, k, x, gradient, shown, call.reads[k])
    sources = [source for source in call.reads[k] if source.kind == "output"]
    parts = [recording.calls[source.call].outputs[source.place] for source in sources]
    array |= {"isSum": len(parts) > 1 and summands(parts, x) is not None}
    if gradient is None or not np.size(gradient):
        return array
    of = products(call, k)
    cells = largest(call, k, shown.cells(np.shape(call.inputs[k])), each)
    return array | {"products": {"method": of.method, "groups": [group._asdict() for group in of.groups],
                                 "count": sum(int(np.prod(group.shape)) for group in of.groups),
                                 "cells": [[x for j, *pair in cell for x in (j, *numbers(pair))] for cell in cells]}}


def is_transposed(x: np.ndarray) -> bool:
    return x.ndim == 2 and x.T.flags.c_contiguous and not x.flags.c_contiguous


def important(x: np.ndarray, call: Call, k: int, recording: Recording) -> np.ndarray:
    """The gradient whose largest entries are shown: of a parameter the whole one, so that all calls that use the
    parameter show the same cells."""
    names = [source.name for source in call.reads[k] if source.kind == "parameter"]
    whole = recording.grads[names[0]] if names else call.grads[k]
    whole = whole.T if is_transposed(x) else whole
    return whole if whole.shape == x.shape else call.grads[k]


def as_output(call: Call, k: int, recording: Recording, most: int) -> dict:
    gradient, shape = call.dys[k] if call.dys else None, np.shape(call.outputs[k])
    shown = block(np.zeros(shape), SIDE) if gradient is None else block(gradient, most)
    array = as_array(call.op.outputs[k].name, k, call.outputs[k], gradient, shown, ())
    if gradient is None:
        return array
    added = call.dy_reads[k]
    parts = summands([recording.calls[source.call].grads[source.place] for source in added], gradient)
    return array | {"adds": [{"call": source.call, "index": source.place,
                              "values": numbers(shown.of(part)) if parts else None}
                             for source, part in zip(added, parts or added, strict=True)]}


def summands(parts: list, total: np.ndarray) -> list[np.ndarray] | None:
    """The parts in the total's shape; None if they do not add up to it, cell by cell, because another step lies
    between, such as a turn of the axes."""
    if not parts or total.dtype.kind != "f" or any(part.size != total.size for part in parts):
        return None
    parts = [np.asarray(part).reshape(total.shape) for part in parts]
    rounding = 16 * len(parts) * np.finfo(total.dtype).eps
    close = np.abs(sum(map(double, parts)) - total) <= rounding * sum(map(np.abs, map(double, parts)))
    return parts if close.all() else None
