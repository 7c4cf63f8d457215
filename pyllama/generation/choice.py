"""The choice of the next token, given its scores.

    scores z[V] -> repetition_penalty -> rules -> temperature -> top_k -> top_p -> min_p -> softmax -> draw

The order is Hugging Face's.  Without sampling, the token with the highest score after the rules is taken.  A token that
is ruled out has the score -∞, so the softmax renormalizes the others.
"""
import math
from collections.abc import Callable

import numpy as np

from pyllama.errors import UserError
from pyllama.generation.rules import EXCLUDED
from pyllama.generation.settings import GenerationConfig
from pyllama.ops import softmax
from pyllama.ops.softmax import log_sum_exp

LARGEST = np.finfo(np.float64).max


def repetition_penalty(z, seen, r: float):
    """z_i / r if z_i > 0, else z_i · r, for the ids i in `seen` (Keskar et al., 2019, section 4.1).

    A start token may have no score, because it is not among the tokenizer's tokens.
    """
    z = z.astype(np.float64)
    seen = [i for i in seen if i < len(z)]
    with np.errstate(over="ignore"):                # of an extreme r
        z[seen] = np.where(z[seen] > 0, z[seen] / r, z[seen] * r)
    return np.clip(z, -LARGEST, LARGEST)


def top_k(z, k: int):
    """Keep the k highest scores z[V], and those equal to the k-th."""
    if k == 0 or k >= z.size:
        return z
    return np.where(z >= np.partition(z, -k)[-k], z, -np.inf)


def top_p(z, p: float):
    """Keep the smallest set of the most likely tokens whose total probability reaches p (Holtzman et al., 2020).

    With tokens in order of falling probability, token n is kept if Σ_{m<n} p_m < p; the first always is.
    """
    if p == 1:
        return z
    order = np.argsort(-z, kind="stable")
    descending = softmax(z[order])[0]
    z = z.copy()
    z[order[np.cumsum(descending) - descending >= p]] = -np.inf
    return z


def min_p(z, p: float):
    """Keep the tokens with p_i ≥ p · max_j p_j, that is z_i ≥ max_j z_j + log p (Nguyen et al., 2024)."""
    return z if p == 0 else np.where(z >= z.max() + np.log(p), z, -np.inf)


def tempered(z, t: float):
    """(z - max z) / t: the softmax of z / t, without its overflow for a small t."""
    with np.errstate(over="ignore"):                # to -∞, which is right
        return (z - z.max()) / t


def warped(z, settings: GenerationConfig):
    """The scores z[V] as sampling sees them, in float64; -∞ for a token that is not drawn."""
    s = settings
    return min_p(top_p(top_k(tempered(z.astype(np.float64), s.temperature), s.top_k), s.top_p), s.min_p)


def distribution(z, settings: GenerationConfig):
    """The probabilities [V] from which the next token is drawn."""
    return softmax(warped(z, settings))[0]


def draw(p, u: float) -> int:
    """The first id whose cumulative probability exceeds u in 0 ≤ u < 1; for uniform u it is i with probability p_i."""
    total = np.cumsum(p)
    return int(np.searchsorted(total, u * total[-1], side="right"))


def require_finite(z) -> None:
    """Raise UserError if a score is NaN, or if the highest is infinite.

    The highest tells: NumPy takes a NaN for it, wherever it is.
    """
    if not np.isfinite(z.max(axis=-1)).all():
        raise UserError("the model's scores are not finite, because its training diverged; use an earlier checkpoint")


def allowed(z, seen, settings: GenerationConfig, restrict: Callable | None = None):
    """The scores z[V] after the repetition penalty and the rules.

    seen        the ids before
    restrict    gives the scores with -∞ for tokens that are ruled out; None: none is

    Raises UserError if a score is not finite, or if all tokens are ruled out.
    """
    require_finite(z)
    if settings.repetition_penalty != 1:
        z = repetition_penalty(z, seen, settings.repetition_penalty)
    if restrict:
        z = restrict(z)
        if z.max() == -np.inf:
            raise UserError(EXCLUDED)
    return z


def choose(z, seen, settings: GenerationConfig, rng: "np.random.Generator | None", restrict: Callable | None = None
           ) -> int:
    """The next id, given its scores z[V]; rng is used unless the choice is greedy.  For the others see allowed()."""
    if settings.greedy and not restrict and settings.repetition_penalty == 1:
        best = int(z.argmax())                      # the usual case reads the scores once
        if math.isfinite(z[best]):
            return best
    z = allowed(z, seen, settings, restrict)
    if settings.greedy:
        return int(z.argmax())
    assert rng is not None
    return draw(distribution(z, settings), rng.random())


def log_probability(z, token: int, seen, settings: GenerationConfig, restrict: Callable | None = None) -> float:
    """log p of a token that choose() took; of a sampled one, in the distribution that it was drawn from."""
    z = allowed(z, seen, settings, restrict).astype(np.float64)
    z = z if settings.greedy else warped(z, settings)
    return float(z[token] - log_sum_exp(z)[0])
