"""Dropout, step by step: see pyllama/ops/dropout.py."""
from fractions import Fraction
from itertools import count

from pyllama.ops import dropout
from pyllama.ops.dropout import scale
from pyllama.study.derivation import Derivation, Step

RATE = 0.25
RATES = [Fraction(k, 8) for k in range(8)]                  # exact as floating-point numbers, too


def mask(u, rate):
    return u >= rate


def probability() -> str:
    """Of the equally likely numbers 0, 1/8, ..., 7/8, how many are kept?"""
    return "; ".join(f"P(m = 1) is {share} for the rate {rate}" for rate in RATES
                     if (share := Fraction(sum(mask(u, rate) for u in RATES), len(RATES))) != 1 - rate)


def code(names):
    """Both passes of the op, at a place of the random stream where it draws the mask of the derivation."""
    m, options = mask(names["u"], RATE), {"rate": RATE, "key": (0,)}
    start = next(start for start in count() if ((scale(m, start=start, **options) > 0) == m).all())
    y, back = dropout(names["x"], start=start, **options)
    dx, = back(names["dy"])
    return {"m": m.astype(float), "y": y, "dx": dx}


DERIVATION = Derivation(
    title="Dropout",
    module="pyllama.ops.dropout",
    arrays={"x": "D", "u": "D", "dy": "D"},
    letters={"i": "D"},
    sizes={"D": 4},
    options={"rate": RATE},
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("m_i = [u_i ≥ rate]",
             "`u_i` is a random number between 0 and 1, a new one in each step of training.  `x_i` is dropped if it is "
             "below the rate, so that the network learns to rely on no single number.",
             "keep = rng.random(start % BLOCK + x.size, dtype=np.float32)[start % BLOCK:].reshape(x.shape) >= rate"),
        Step("P(m_i = 1) = 1 - rate", "The numbers from the rate to 1 are kept: an interval of this length.",
             check=probability),
        Step("y_i = m_i x_i / (1 - rate)", "What is kept is made larger, to make up for what is dropped.",
             "return np.asarray(keep / (1 - rate), dtype=x.real.dtype, like=x)"),
        Step("(1 - rate) x_i / (1 - rate) + rate · 0 = x_i",
             "Both values of `y_i`, each times its probability.  So evaluation, without dropout, uses x as it is."),
        Step("dx_i = m_i dy_i / (1 - rate)", "The slope of `y_i`: 0 for a dropped number, the scale for a kept one.",
             "return (dy * scale(dy, rate, key, start),)"),
    ))
