"""Why a model answers so: a reason as JSON, and as lines of a terminal."""
import math
from typing import Any

import numpy as np

from pyllama.cli.characters import bar
from pyllama.study.attribution import TOLERANCE
from pyllama.study.deciding import Reason
from pyllama.study.spelling import label

METHODS = {"integrated": "integrated gradients", "gradient": "gradient x input"}
BASELINES = {"mask": "the mask token", "pad": "the padding token", "mean": "the mean of all tokens", "zero": "zero"}


def as_json(reason: Reason | None) -> dict[str, Any] | None:
    """The reason as an object for JSON, its numbers rounded."""
    if reason is None:
        return None
    found = reason.attribution
    return {"kind": reason.kind, "target": reason.target or None, "method": reason.method, "baseline": reason.baseline,
            "steps": found.steps, "score": round(found.score, 6), "baseline_score": round(found.base, 6),
            "gap": round(found.gap, 6), "tokens": reason.tokens, "shares": np.round(found.shares, 6).tolist()}


def lines(explanation: dict[str, Any] | None) -> list[str]:
    """What as_json() returned, as a paragraph: the scores, a line for each token, what the shares add up to."""
    if explanation is None:
        return []
    names = [*map(label, explanation["tokens"])]
    width, largest = max(map(len, names)), max(map(abs, explanation["shares"]))
    rows = [f"  {share:+9.4f}  {name:{width}}  {bar(share, largest)}".rstrip()
            for share, name in zip(explanation["shares"], names, strict=True)]
    return [f"  {scores(explanation)}", *rows, f"  {total(explanation)}"]


def scores(explanation: dict[str, Any]) -> str:
    """The score of the text, and that of the baseline."""
    kind, score, base = explanation["kind"], explanation["score"], explanation["baseline_score"]
    instead = f"with {BASELINES[explanation['baseline']]} for every token"
    if kind == "number":
        return f"the number is {score:.4f}; {instead}, {base:.4f}"
    if kind == "text":
        return f"the answer has the log-probability {score:.4f}; {instead}, {base:.4f}"
    left = ", so there is little to explain: choose another baseline or target" * (base > math.log(1 / 2))
    return f"{explanation['target']} has the probability {math.exp(score):.4f}; {instead}, {math.exp(base):.4f}{left}"


def total(explanation: dict[str, Any]) -> str:
    """What the shares add up to, and what is missing to the difference of the scores."""
    shares, steps, gap = explanation["shares"], explanation["steps"], explanation["gap"]
    unit = "" if explanation["kind"] == "number" else " nats of log-probability"
    way = METHODS[explanation["method"]] + (f" in {steps:,} steps" if steps else "")
    said = f"{sum(shares):+9.4f}  in all of {explanation['score'] - explanation['baseline_score']:+.4f}{unit}, by {way}"
    is_large = steps and abs(gap) > TOLERANCE * sum(map(abs, shares))
    return said + f"; the gap of {gap:+.4f} is more than a hundredth of the shares" * bool(is_large)
