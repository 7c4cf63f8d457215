"""The document of a recorded step: all that the page shows, as a value for JSON.

    {"version": 1, "model": {...}, "tokens": [...], "loss": ..., "order": [...],
     "calls": [{"op", "line", "parameter", "options", "inputs": [ARRAY], "outputs": [ARRAY],
                "norms", "gradientNorms": of the outputs}],
     "tokenLosses", "attention", "flow", "units", "update", "nudges": see views.py}

    ARRAY   {"name", "shape", "rows", "columns": the cells shown, "whole": whether these are all,
             "values", "gradients": of the cells, row by row; gradients is null for integers,
             "place": the number of the input or output of the op,
             "reads": [[call, output]], the calls whose outputs were added,
             "parameter": the name of one, "transposed": whether the op reads its transpose
             input:  "products": {"method", "groups", "count", "cells": [[number, left, right, number, ...]]}
             output: "adds": [{"call", "index", "values" or null}], the gradients that were added to "gradients"}
"""
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllama.study.explain import views
from pyllama.study.explain.cells import Block, block, number, numbers
from pyllama.study.explain.nudges import Nudge
from pyllama.study.explain.products import largest, products
from pyllama.study.explain.recording import Call, Recording
from pyllama.study.explain.subject import Subject
from pyllama.study.explain.tracing import Source
from pyllama.study.explain.update import Update

VERSION = 1
SIDE = 64                                       # rows and columns of a block, at most
ROOM = ((SIDE, 8), (SIDE, 3), (48, 3), (32, 3), (24, 3), (16, 3), (12, 3), (8, 3), (6, 2), (4, 2), (2, 1), (1, 1))
OF_CELL, OF_PRODUCT, OF_ARRAY = 24, 24, 400     # bytes of JSON, about


def document(subject: Subject, recording: Recording, update: Update, nudges: list[Nudge], most: int, each: int) -> dict:
    """The document, with blocks of at most `most` x `most` cells and `each` products of a cell."""
    weights = [one.weight for one in nudges]
    return {"version": VERSION, "loss": number(recording.loss, 9), "order": recording.order,
            "model": about(subject), "tokens": [views.token(subject, i) for i in subject.inputs["ids"][0]],
            "calls": [as_call(one, recording, most, each) for one in recording.calls],
            "tokenLosses": views.token_losses(subject, recording), "attention": views.attention(recording),
            "flow": views.flow(recording, update), "units": views.units(recording),
            "update": views.updated(update, weights, subject.settings.weight_decay),
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
    return {"name": subject.name, "type": config.TYPE, "learns": config.learns, "parameters": state.flat.size,
            "dtype": str(state.flat.dtype), "step": state.step, "resumed": subject.resumed}


def as_call(call: Call, recording: Recording, most: int, each: int) -> dict:
    inputs = [as_input(call, k, most, each) for k, x in enumerate(call.inputs) if x is not None]
    outputs = [as_output(call, k, recording, most) for k in range(len(call.outputs))]
    named = [source.name for sources in call.reads for source in sources if source.kind == "parameter"]
    return {"op": call.op.name, "line": call.op.shapes, "parameter": named[0] if named else None,
            "options": {name: str(value) for name, value in call.options.items() if value is not None},
            "inputs": inputs, "outputs": outputs, "norms": views.norms(call.outputs),
            "gradientNorms": views.norms(call.dys)}


def as_array(name: str, place: int, x: Any, gradient: Any, most: int, reads: tuple[Source, ...]
             ) -> tuple[dict, Block]:
    """(the ARRAY without products, its block)."""
    x = np.asarray(x)
    if x.dtype.kind == "b":
        x = x.astype(int)
    shown = block(np.zeros(x.shape), SIDE) if gradient is None else block(gradient, most)
    return {"name": name, "place": place, "shape": list(x.shape),
            "rows": shown.rows.tolist(), "columns": shown.columns.tolist(),
            "whole": len(shown.rows) * len(shown.columns) == x.size, "values": numbers(shown.of(x)),
            "gradients": None if gradient is None else numbers(shown.of(gradient)),
            "reads": [[source.call, source.place] for source in reads if source.kind == "output"],
            "parameter": next((source.name for source in reads if source.kind == "parameter"), None),
            "transposed": x.ndim == 2 and x.T.flags.c_contiguous and not x.flags.c_contiguous}, shown


def as_input(call: Call, k: int, most: int, each: int) -> dict:
    gradient = call.grads[k] if k < len(call.grads) else None
    array, shown = as_array(call.op.inputs[k].name, k, call.inputs[k], gradient, most, call.reads[k])
    if gradient is None or not np.size(gradient):
        return array
    of = products(call, k)
    cells = largest(call, k, shown.cells(np.shape(call.inputs[k])), each)
    return array | {"products": {"method": of.method, "groups": [group._asdict() for group in of.groups],
                                 "count": sum(int(np.prod(group.shape)) for group in of.groups),
                                 "cells": [[x for j, *pair in cell for x in (j, *numbers(pair))] for cell in cells]}}


def as_output(call: Call, k: int, recording: Recording, most: int) -> dict:
    gradient = call.dys[k] if call.dys else None
    array, shown = as_array(call.op.outputs[k].name, k, call.outputs[k], gradient, most, ())
    if gradient is None:
        return array
    added = [source for source in call.dy_reads[k] if source.kind == "gradient"]
    parts = addends(added, recording, gradient)
    return array | {"adds": [{"call": source.call, "index": source.place,
                              "values": numbers(shown.of(part)) if parts else None}
                             for source, part in zip(added, parts or added, strict=True)]}


def addends(added: list[Source], recording: Recording, total: np.ndarray) -> list[np.ndarray] | None:
    """The gradients that add up to the total, cell by cell; None if more than a sum lies between, such as a turn of the
    axes."""
    parts = [np.asarray(recording.calls[source.call].grads[source.place]) for source in added]
    if not parts or any(part.size != total.size for part in parts):
        return None
    parts = [part.reshape(total.shape) for part in parts]
    rounding = 16 * len(parts) * np.finfo(total.dtype).eps
    close = np.abs(sum(map(views.double, parts)) - total) <= rounding * sum(map(np.abs, map(views.double, parts)))
    return parts if close.all() else None
