"""The answers of a classifier from its scores: a class, several classes or a number, by problem_type in config.json.

A model that is fine-tuned here has one class for each text.  Other programs train the other two, too.
"""
from collections.abc import Sequence

import numpy as np

from pyllama.errors import UserError
from pyllama.tasks.answers import ByClass

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")      # transformers' names
SEPARATOR = ","                                             # between the classes in a row's label


def problem_of(config) -> str:
    """What the scores are for; one score is a number.  Raises UserError for an unknown problem_type."""
    stored = config.extra.get("problem_type") or PROBLEMS[config.num_labels > 1]
    if stored not in PROBLEMS:
        raise UserError(f"problem_type is {stored!r} in config.json; it must be one of {', '.join(PROBLEMS)}")
    return "regression" if config.num_labels == 1 else stored


def answer(z: np.ndarray, names: Sequence[str], problem: str) -> tuple[str | list | float, dict]:
    """(the answer, its probabilities) from the scores z [C] of the classes with these names.

    The answer is the most likely class; those with a probability above 1/2; or the number, a list if there are several.

    >>> import numpy as np
    >>> from pyllama.tasks.scores import answer
    >>> answer(np.array([0.0, 0.0]), ["bad", "good"], "single_label_classification")
    ('bad', {'probability': 0.5, 'probabilities': {'bad': 0.5, 'good': 0.5}})
    """
    if problem == "regression":
        numbers = [round(float(number), 6) for number in z]
        return numbers if len(numbers) > 1 else numbers[0], {}
    if problem == "multi_label_classification":
        shares = ByClass((name, round(float(1 / (1 + np.exp(-s))), 6)) for name, s in zip(names, z, strict=True))
        return [name for name, s in zip(names, z, strict=True) if s > 0], {"probabilities": shares}
    e = np.exp(z - z.max())
    shares = ByClass((name, round(float(p), 6)) for name, p in zip(names, e / e.sum(), strict=True))
    best = names[int(z.argmax())]
    return best, {"probability": shares[best], "probabilities": shares}


def number_metrics(answers: Sequence[float], truth: Sequence[str]) -> dict:
    """Of numbers: the mean squared error, and the correlations of Pearson and of Spearman (of the ranks).

    Raises ValueError if a label is not a number.
    """
    numbers = np.array([[float(label) for label in truth], answers])

    def ranks(values):
        """The place of each number among the sorted ones; of equal numbers, the mean of their places."""
        _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts + 1) / 2)[which]

    def correlation(a, b):
        a, b = a - a.mean(), b - b.mean()
        scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
        return float((a * b).sum()) / scale if scale else 0.0

    return {"mean_squared_error": float(np.square(numbers[0] - numbers[1]).mean()), "pearson": correlation(*numbers),
            "spearman": correlation(*map(ranks, numbers)), "rows": len(truth)}


def set_metrics(answers: Sequence[list[str]], truth: Sequence[str]) -> dict:
    """Of several classes, separated by commas in a row's label: exact match of the sets, and F1 over all decisions."""
    pairs = [({*answer}, {part.strip() for part in label.split(SEPARATOR)} - {""})
             for answer, label in zip(answers, truth, strict=True)]
    both = sum(len(a & b) for a, b in pairs)
    total = sum(len(a) + len(b) for a, b in pairs)
    return {"exact_match": float(np.mean([a == b for a, b in pairs])), "f1_micro": 2 * both / total if total else 1.0,
            "rows": len(pairs)}
