"""Find the source of a NaN or an infinity: replay a computation and name the first tensor that is not finite."""
from collections import Counter

import numpy as np

from pyllama import params
from pyllama.op import watching


class NotFinite(Exception):
    """Ends a replay; the message names the tensor."""


def first_not_finite(p, compute) -> str:
    """Name the first tensor that is not finite: a parameter of the tree p, or else one that an op in compute() returns.

    Results and gradients of ops are checked in the order of the calls.  Returns part of a sentence.
    """
    for name, leaf in params.leaves(p):
        if not (np.isfinite(leaf).all() if hasattr(leaf, "dtype") else leaf.is_finite()):       # or it is encoded
            return f"the parameter {name} is not finite"
    calls: Counter[str] = Counter()

    def watch(op, call, inputs, options):
        y, back = call(*inputs, **options)
        calls[op.name] += 1
        number = calls[op.name]
        for result in op.each(y):
            require(result, f"the result of call {number} of {op.name} in the step")

        def watched_back(dy):
            grads = back(dy)
            for declared, grad in zip(op.inputs, grads, strict=False):
                require(grad, f"the gradient for {declared.name} of call {number} of {op.name} in the step")
            return grads

        return y, watched_back

    def require(x, what):
        if x is not None and not np.isfinite(x).all():
            raise NotFinite(f"{what} is the first tensor that is not finite")

    try:
        with np.errstate(all="ignore"), watching(watch):
            compute()
    except NotFinite as error:
        return str(error)
    return "every tensor is finite, but a sum of them is not"
