"""The workers of bench/ops.py: each times the forward and backward passes that one implementation has."""
import time

import numpy as np

from bench.rotation import serve


def serve_passes(op_of, convert=lambda array: array):
    """op_of(name) is a function (*inputs, **options) -> y, back in the form of pyllama/op.py, or None if there is none;
    convert makes of an array what it takes."""

    def answer(name, inputs, dys, options, seconds):
        """Seconds of each forward and of each backward pass; inputs are (shape, the bound of integers or 0)."""
        op = op_of(name)
        if op is None:
            return {}
        rng = np.random.default_rng(0)
        xs = [convert(rng.integers(0, bound, shape) if bound else small(rng, shape)) for shape, bound in inputs]
        dy = [convert(small(rng, shape)) for shape in dys]
        dy = tuple(dy) if len(dy) > 1 else dy[0]
        passes, end = [], time.perf_counter() + seconds
        while len(passes) < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            y, back = op(*xs, **options)
            middle = time.perf_counter()
            gradients = back(dy)
            passes.append((middle - begin, time.perf_counter() - middle))
            del y, back, gradients                          # their memory is free again for the next
        forward, backward = zip(*passes[1:], strict=True)   # the first warms up
        return {"forward": forward, "backward": backward}

    serve(answer)


def small(rng, shape):
    """As in a model: probabilities of unscaled logits are so small (subnormal) that they slow a processor down."""
    return np.asarray(0.1 * rng.standard_normal(shape), np.float32)
