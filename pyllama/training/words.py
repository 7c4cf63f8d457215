"""The training loop of word vectors: skip-gram and GloVe.

    batch = skipgram.batches(tokens, config, settings.batch_size, settings.seed)
    state = loop.start(config, settings)
    for record in words.train(state, batch, settings):
        print(record)

batch(step) returns the inputs of the model's loss.  Random numbers depend on (seed, step) alone.
"""
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pyllama import params
from pyllama.errors import UserError
from pyllama.training.loop import Settings, State
from pyllama.training.optim import clip_scale


class Record(NamedTuple):
    """The results of a step."""
    step: int                                   # number of steps done, including this one
    loss: float                                 # mean over the step's pairs: weight it by `pairs` to average steps
    pairs: int                                  # number of pairs, which may be 0
    grad_norm: float                            # norm of the gradient before clipping
    lr: float                                   # learning rate
    seconds: float                              # wall time


def train(state: State, batch: Callable[[int], tuple[np.ndarray, ...]], settings: Settings) -> Iterator[Record]:
    """Train to settings.max_steps, in place, and yield a Record after each step.

    state     of loop.start()
    batch     batch(step) returns the arguments of the model's loss
    settings  the schedule, the optimizer, max_grad_norm, weight_decay (usually 0 for word vectors) and max_steps apply

    Raises UserError if the loss or the gradient is not finite; the state is then that before the step.
    """
    flat = np.zeros_like(state.flat)
    grads = state.gradients(flat)
    state.optimizer.begin(state.flat)
    state.working.update()                      # the caller may have changed the parameters
    while state.step < settings.max_steps:
        begin = time.perf_counter()
        inputs = batch(state.step)
        state.optimizer.clear(grads)
        with np.errstate(over="ignore", invalid="ignore"), state.optimizer.recording(state.working.tree), \
                params.adding(state.working.tree, grads, ahead=True):
            loss, back = state.model.loss(*inputs, state.working.tree, state.config)
            params.add(grads, back())
        norm = state.optimizer.sum_and_norm([flat])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UserError(f"the loss is {loss:.4g} and the gradient's norm {norm:.4g} in step {state.step + 1}; "
                            f"lower learning_rate or lengthen warmup_steps")
        lr = settings.rate(state.step)
        state.optimizer.step(state.flat, flat, lr, settings.weight_decay, clip_scale(norm, settings.max_grad_norm),
                             state.working.copy)
        state.step += 1
        yield Record(state.step, float(loss), len(inputs[0]), norm, lr, time.perf_counter() - begin)
