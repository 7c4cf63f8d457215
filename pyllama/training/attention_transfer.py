"""The loss of a student's last attention against its teacher's, in any two families: see ops/attention_divergence.py.

Attention never keeps how it shares out its keys, and no model returns its queries and keys.  So they are taken from the
last call of the op, and the loss's gradients are added to those of that call: see op.watching.

Axes: B batch, G key/value heads, R query heads of each, H = G R, T and S time, K and J the head widths of both.
"""
import contextlib

import numpy as np

from pyllama.low import total
from pyllama.op import watching
from pyllama.ops import attention_divergence


class LastAttention:
    """What the last call of attention in a model was given, and gradients to add to those of its queries and keys.

    Within watched(), both passes of the model go through it.  The first call that runs backward is the last one of the
    forward pass, even if the backward pass repeats the forward pass of each layer: see models/recompute.py.
    """

    def __init__(self, wanted):
        self.wanted = wanted
        self.inputs, self.options = (), {}
        self.others = None                      # (dq, dk) for the first call that runs backward

    def watched(self):
        """A context in which calls are noticed, if they are wanted."""
        return watching(self) if self.wanted else contextlib.nullcontext()

    def __call__(self, op, call, inputs, options):
        y, back = call(*inputs, **options)
        if op.name != "attention":
            return y, back
        self.inputs, self.options = inputs, options

        def with_others(dy):
            dq, dk, *rest = back(dy)
            if self.others is not None:
                (dq_other, dk_other), self.others = self.others, None
                dq, dk = total(dq, dq_other), total(dk, dk_other)
            return dq, dk, *rest

        return y, with_others

    def by_head(self):
        """(q [B H T K], k [B H S K]): each query head has the keys of its group."""
        q, k = self.inputs[:2]
        B, G, R, T, K = q.shape
        return q.reshape(B, G * R, T, K), np.repeat(k, R, axis=1)


def attention_loss(student, teacher, target, *, count):
    """The divergence of the last attention of two models, over the keys that both see: (loss, back).

    student, teacher    a LastAttention of each, with as many heads
    target [B T]        as in ops/attention_divergence.py
    count               the divisor, of a step whose rows are computed in parts

    back(dloss) leaves the gradients with the student, whose backward pass adds them.
    """
    masks = dict(zip(("mask", "segments"), student.inputs[3:], strict=False))
    windows = [one.options["window"] for one in (student, teacher) if one.options.get("window") is not None]
    loss, divergence_back = attention_divergence(*teacher.by_head(), *student.by_head(), target, **masks,
                                                 causal=student.options["causal"], window=min(windows, default=None),
                                                 count=count)

    def back(dloss):
        _, _, dq, dk, *_ = divergence_back(dloss)
        q, k = student.inputs[:2]
        B, G, R, *_ = q.shape
        student.others = dq.reshape(q.shape), dk.reshape(B, G, R, *k.shape[2:]).sum(axis=2)

    return loss, back
