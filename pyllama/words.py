"""What skip-gram and GloVe share: their configuration's form, the order of an epoch, the training loop.

    batch = skipgram.batches(tokens, config, settings.batch_size, settings.seed)
    state = train.start(skipgram, config, settings)
    for record in words.train(state, batch, settings):
        print(record)

batch(step) makes what goes into the model's loss.  All that is drawn depends on (seed, step) alone.
"""
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyllama import params
from pyllama.data import Tokens
from pyllama.errors import UserError
from pyllama.models.config import Config
from pyllama.ops.embedding import require_below
from pyllama.optim import clip_scale, global_norm
from pyllama.rng import generator
from pyllama.train import Settings, State


@dataclass(frozen=True)
class WordsConfig(Config):
    """The shape of two tables of word vectors, and how far a word sees."""

    vocab_size: int = 10000                     # V
    hidden_size: int = 100                      # D
    window: int = 5                             # words to either side that are a word's context

    def __post_init__(self):
        self.check(positive=("vocab_size", "hidden_size", "window"))


def laid_out(tokens: Tokens, c: WordsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(ids[N], the number of each one's document [N]), int64.  UserError if there are fewer than two."""
    if len(tokens) < 2:
        raise UserError(f"there are {len(tokens)} tokens, but it takes 2 to make a pair; give more text")
    ids = tokens[:]
    require_below(ids, c.vocab_size)
    return ids, np.repeat(np.arange(len(tokens.starts)), tokens.stops - tokens.starts)


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(size)


def visit(size: int, batch_size: int, seed: int, step: int) -> tuple[int, np.ndarray]:
    """(epoch, places): which of `size` things belong to this step (0, 1, ...).

    An epoch visits each once, in an order of its own.  Its last step has what is left.
    """
    epoch, turn = divmod(step, -(-size // batch_size))
    return epoch, _order(size, seed, epoch)[turn * batch_size:(turn + 1) * batch_size]


class Record(NamedTuple):
    """What happened in a step."""
    step: int                                   # steps done, this one included
    loss: float                                 # mean over the step's pairs: weigh it by `pairs` to average steps
    pairs: int                                  # how many there were; it may be none
    grad_norm: float                            # before clipping
    lr: float
    seconds: float


def train(state: State, batch: Callable[[int], tuple[np.ndarray, ...]], settings: Settings) -> Iterator[Record]:
    """Advance the state of train.start() to settings.max_steps, yielding a Record after each step.

    Of the settings it takes the schedule, the optimiser's, max_grad_norm, weight_decay (0 is usual for word vectors)
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
        state.optimiser.step(state.flat, flat, lr, settings.weight_decay, clip_scale(norm, settings.max_grad_norm))
        state.step += 1
        yield Record(state.step, float(loss), len(inputs[0]), norm, lr, time.perf_counter() - begin)
