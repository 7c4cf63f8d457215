"""The training loop of word vectors, skip-gram's and GloVe's.

    batch = skipgram.batches(tokens, config, settings.batch_size, settings.seed)
    state = loop.start(config, settings)
    for record in words.train(state, batch, settings):
        print(record)

batch(step) makes the inputs of the model's loss.  Everything random depends on (seed, step) alone.
"""
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pyllama import params
from pyllama.errors import UserError
from pyllama.training.loop import Settings, State
from pyllama.training.optim import clip_scale, global_norm


class Record(NamedTuple):
    """What happened in a step."""
    step: int                                   # steps done, this one included
    loss: float                                 # mean over the step's pairs: weigh it by `pairs` to average steps
    pairs: int                                  # how many there were; it may be none
    grad_norm: float                            # before clipping
    lr: float
    seconds: float


def train(state: State, batch: Callable[[int], tuple[np.ndarray, ...]], settings: Settings) -> Iterator[Record]:
    """Advance the state of loop.start() to settings.max_steps, yielding a Record after each step.

    Of the settings it takes the schedule, the optimizer's, max_grad_norm, weight_decay (0 is usual for word vectors)
    and max_steps.  Raises UserError, with the state as it was before the step, if loss or gradient is not finite.
    """
    flat = np.zeros_like(state.flat)
    grads = params.over(flat, state.p)
    while state.step < settings.max_steps:
        begin = time.perf_counter()
        inputs = batch(state.step)
        flat.fill(0)
        with np.errstate(over="ignore", invalid="ignore"), params.adding(state.p, grads):
            loss, back = state.model.loss(*inputs, state.p, state.config)
            params.add(grads, back())
        norm = global_norm(flat)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UserError(f"the loss is {loss:.4g} and the gradient's norm {norm:.4g} in step {state.step + 1}; "
                            f"lower learning_rate or lengthen warmup_steps")
        lr = settings.rate(state.step)
        state.optimizer.step(state.flat, flat, lr, settings.weight_decay, clip_scale(norm, settings.max_grad_norm))
        state.step += 1
        yield Record(state.step, float(loss), len(inputs[0]), norm, lr, time.perf_counter() - begin)
