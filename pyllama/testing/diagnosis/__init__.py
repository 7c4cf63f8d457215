"""What is wrong with a gradient, in words.

    whole       claimed is measured with a factor, in another order, of another input, ...
    terms       a term is missing; a factor for each row
    alike       what claimed and measured have in common
    places      wrong only at some entries
    calls       how back uses dy; at which points it is wrong
    digits      nearly right

Each gives sentences that the numbers support; none guesses.  See evidence.py for what "support" means.
"""
import numpy as np

from pyllama.testing.diagnosis import alike, calls, digits, places, terms, whole
from pyllama.testing.diagnosis.evidence import Evidence

__all__ = ["Evidence", "diagnose"]

MOST = 4                                            # sentences


def diagnose(evidence: Evidence) -> tuple[str, ...]:
    """What is probably wrong, in sentences, the most specific first; none if the numbers support no cause.

    >>> import numpy as np
    >>> from pyllama.testing.diagnosis import Evidence, diagnose
    >>> x, dy = np.array([1.0, 2.0, 3.0]), np.array([1.0, -1.0, 0.5])
    >>> evidence = Evidence("x", "y", {"x": x}, x, x ** 3, dy, claimed=6 * x * x * dy, measured=3 * x * x * dy,
    ...                     tolerance=np.full(3, 1e-11), gradient=lambda dy: 6 * x * x * dy)
    >>> diagnose(evidence)
    ('Constant factor 2.000: claimed = 2.000 × measured at all 3 entries compared.',)
    """
    if not np.isfinite(evidence.claimed).all():
        return not_finite(evidence),
    with np.errstate(all="ignore"):
        return tuple(dict.fromkeys(causes(evidence)))[:MOST] if evidence.bad.any() else ()


def not_finite(e: Evidence) -> str:
    places = np.argwhere(~np.isfinite(e.claimed)).tolist()
    value = e.claimed[tuple(places[0])]
    return (f"Not finite: claimed is {value} at {e.input}{places[0]}" +
            (f" and not finite at {len(places) - 1} other entries" if len(places) > 1 else "") + ".")


def causes(e: Evidence) -> list[str]:
    """All sentences in their order."""
    of_calls = [*calls.sentences(e)]
    if begins(of_calls, "dy ignored"):
        return of_calls                                 # a formula that fits for this dy does not fit for others
    if explained := [*whole.sentences(e)]:
        return of_calls + explained
    if begins(of_calls, "dy read as contiguous"):
        return of_calls                                 # claimed belongs to another dy
    if where := located(e):
        return of_calls + where
    sentences = [*of_calls, *([*terms.sentences(e)] or alike.sentences(e))]
    return sentences if begins(sentences, "Missing term", "dy") else [*sentences, *digits.sentences(e)]


def begins(sentences: list[str], *words: str) -> bool:
    return any(sentence.startswith(words) for sentence in sentences)


def located(e: Evidence) -> list[str]:
    """Where it is wrong, and what is wrong there."""
    where, there = [*places.sentences(e)], e.at(e.bad)
    cause = [*whole.sentences(there)] if where or e.good.any() else []
    if cause and not where and e.bad.sum() >= places.SEVERAL:
        where = [places.scattered(e)]
    cause = cause or [*digits.sentences(there)]
    return where + [f"There: {sentence}" for sentence in cause[:1]] if where else []
