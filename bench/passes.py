"""Shared by the workers of bench/ops.py: time the forward and backward passes of one implementation's ops."""
import time

import numpy as np

from bench.rotation import serve


def serve_passes(op_of, convert=lambda array: array):
    """Answer requests for timings.

    op_of       name -> function (*inputs, **options) -> (y, back), as in pyllama/op.py, or None if there is none
    convert     NumPy array -> the implementation's array
    """

    def answer(name, inputs, dys, options, seconds):
        """Seconds of each forward and each backward pass; inputs are (shape, bound of the integers or 0)."""
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
            del y, back, gradients                          # frees their memory for the next pass
        forward, backward = zip(*passes[1:], strict=True)   # the first warms up
        return {"forward": forward, "backward": backward}

    serve(answer)


def small(rng, shape):
    """Random float32 numbers as small as in a model: larger logits make subnormal probabilities, which are slow."""
    return np.asarray(0.1 * rng.standard_normal(shape), np.float32)
