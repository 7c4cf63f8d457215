"""A training step, recorded: every call of an op with its inputs, results and gradients, and where each came from."""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyllama import params
from pyllama.op import Op, watching
from pyllama.study.explain.tracing import Source, plain, sources_of, traced


@dataclass(eq=False)
class Call:
    """A call of an op.

    inputs, outputs     plain arrays, None for an optional input that was left out
    reads               the sources of each input
    dys                 ∂loss/∂output for each output; empty if the backward pass did not reach the call
    dy_reads            the gradients that each of dys was computed from, most often by a sum
    grads               what the backward pass returned: a gradient for each input, None for an integer input
    """
    op: Op
    inputs: tuple
    options: dict
    outputs: tuple
    reads: list[tuple[Source, ...]]
    dys: tuple = ()
    dy_reads: list[tuple[Source, ...]] = field(default_factory=list)
    grads: tuple = ()


@dataclass(eq=False)
class Recording:
    """A step: the calls in the order of the forward pass.

    order       the numbers of the calls in the order of the backward pass
    loss        of the step, in nats
    grads       {name of a parameter: its gradient}
    reads       {name of a parameter: the sources of its gradient}
    """
    calls: list[Call]
    order: list[int]
    loss: float
    grads: dict[str, np.ndarray]
    reads: dict[str, tuple[Source, ...]]


def record(loss: Callable[[dict], tuple[Any, Callable]], p: dict) -> Recording:
    """Run value, back = loss(p) and back(), with parameters p, and record the calls of ops.

    The numbers are the same, bit for bit, as without recording.

    >>> import numpy as np
    >>> from pyllama.ops import relu
    >>> from pyllama.study.explain.recording import record
    >>> def loss(p):
    ...     y, y_back = relu(p["x"] * 2)
    ...     return y.sum(), lambda dvalue=1.0: {"x": 2 * y_back(np.full_like(y, dvalue))[0]}
    >>> recording = record(loss, {"x": np.array([3.0, -1.0])})
    >>> recording.loss, recording.calls[0].outputs, recording.grads["x"]
    (6.0, (array([6., 0.]),), array([2., 0.]))
    """
    calls: list[Call] = []
    order: list[int] = []

    def watch(op, call, inputs, options):
        number, kept = len(calls), tuple(map(plain, inputs))
        y, back = call(*kept, **options)
        ys = op.each(y)
        recorded = Call(op, kept, options, ys, [sources_of(x) for x in inputs])
        calls.append(recorded)

        def watched_back(dy):
            dys = op.each(dy)
            grads = back(plain(dy))
            order.append(number)
            recorded.dy_reads, recorded.grads = [gradients_of(d) for d in dys], grads
            recorded.dys = tuple(np.asarray(plain(d)) for d in dys)
            return tuple(from_call(d, "gradient", number, i) for i, d in enumerate(grads))

        results = tuple(from_call(y, "output", number, i) for i, y in enumerate(ys))
        return (results if len(op.outputs) > 1 else results[0]), watched_back

    leaves = (traced(leaf, Source("parameter", name)) for name, leaf in params.leaves(p))
    with watching(watch):
        value, back = loss(params.rebuild(p, leaves))
        grads = dict(params.leaves(back()))
    return Recording(calls, order, float(value), {name: plain(g) for name, g in grads.items()},
                     {name: sources_of(g) for name, g in grads.items()})


def gradients_of(dy: Any) -> tuple[Source, ...]:
    """The gradients that dy was computed from.  Steps between two ops may read results of the forward pass, too."""
    return tuple(source for source in sources_of(dy) if source.kind == "gradient")


def from_call(result: Any, kind: Any, call: int, index: int) -> Any:
    """An array with this call as its source; anything else as it is."""
    return traced(result, Source(kind, "", call, index)) if isinstance(result, np.ndarray) else result
