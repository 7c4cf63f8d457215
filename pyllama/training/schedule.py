"""Learning-rate schedules: pure functions of the step with the same signature.

    rate = SCHEDULES["cosine"](step, learning_rate=6e-4, min_lr=6e-5, warmup_steps=100, max_steps=5000, decay_steps=0)

With η = learning_rate, η₀ = min_lr, W = warmup_steps and N = max_steps, and steps counted from 0:

    step < W     rate = η (step + 1)/W               warm-up: from η/W, which is not zero, to η
    step >= W    rate = (1 - w) η + w η₀             decay: each schedule defines how w goes from 0 to 1

All but "constant" and "inverse_sqrt" reach η₀ at step N, just after the last step of the run, and stay there.
"""
import math
from collections.abc import Callable

from pyllama.errors import UserError

SCHEDULES: dict[str, Callable[..., float]] = {}


def schedule(decay):
    """Register the schedule of the name of `decay`, where w = decay(step, warmup_steps, max_steps, decay_steps).

    The registered function returns the learning rate.  It raises UserError for a value out of range.
    """
    def rate(step: int, *, learning_rate: float, min_lr: float, warmup_steps: int, max_steps: int,
             decay_steps: int) -> float:
        for name, value, valid, requirement in (
                ("step", step, step >= 0, "0 or more"),
                ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "positive and finite"),
                ("min_lr", min_lr, 0 <= min_lr <= learning_rate, f"between 0 and learning_rate, {learning_rate}"),
                ("warmup_steps", warmup_steps, warmup_steps >= 0, "0 or more"),
                ("max_steps", max_steps, max_steps >= 1, "1 or more"),
                ("decay_steps", decay_steps, decay_steps >= 0, "0 or more")):
            if not valid:
                raise UserError(f"{name} is {value}; it must be {requirement}")
        if step < warmup_steps:
            return learning_rate * ((step + 1) / warmup_steps)
        w = decay(step, warmup_steps, max_steps, decay_steps)
        return max(min_lr, min((1 - w) * learning_rate + w * min_lr, learning_rate))       # against rounding

    rate.__name__ = rate.__qualname__ = decay.__name__
    rate.__doc__ = decay.__doc__
    SCHEDULES[decay.__name__] = rate
    return rate


def progress(step, start, end):
    """0 up to step start, 1 from step end on, linear between them."""
    if step >= end:
        return 1.0
    return (step - start) / (end - start) if step > start else 0.0


@schedule
def cosine(step, warmup_steps, max_steps, decay_steps):
    """w = (1 - cos πf)/2,  f = (step - W)/(N - W).  Loshchilov & Hutter, "SGDR", 2017, equation 5 without restarts."""
    return (1 - math.cos(math.pi * progress(step, warmup_steps, max_steps))) / 2


@schedule
def linear(step, warmup_steps, max_steps, decay_steps):
    """w = (step - W)/(N - W)."""
    return progress(step, warmup_steps, max_steps)


@schedule
def constant(step, warmup_steps, max_steps, decay_steps):
    """w = 0: the learning rate stays η, even after max_steps."""
    return 0.0


@schedule
def wsd(step, warmup_steps, max_steps, decay_steps):
    """Warm-up, stable, decay:  w = 0 before step S = max(W, N - decay_steps),  w = (step - S)/(N - S) from S on.

    Source: Hu et al., "MiniCPM", 2024, section 4, with a linear decay.
    """
    return progress(step, max(warmup_steps, max_steps - decay_steps), max_steps)


@schedule
def inverse_sqrt(step, warmup_steps, max_steps, decay_steps):
    """w = 1 - √(W/step), independent of N: the rate falls as 1/√step toward min_lr, which is 0 in the paper.

    Source: Vaswani et al., "Attention is all you need", 2017, section 5.3.
    """
    first = max(warmup_steps, 1)
    return 1 - math.sqrt(first / max(step, first))
