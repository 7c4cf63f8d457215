"""Regression: a number for a text or a pair of texts, such as a grade or a similarity.

The head is that of classification with a single score, and the loss is the mean squared error, as Hugging Face's models
have it with the problem_type "regression".
"""
import math

import numpy as np

from pyllama.tasks import classify, pairs, scores
from pyllama.tasks.rows import BadRow, texts_of
from pyllama.tasks.task import Task
from pyllama.training.examples import Examples


def usable(values):
    """{text, label} of a row, the label a number, and its text_pair if it has one.  Raises BadRow."""
    return {**texts_of(values, ("text",), classify.OPTIONAL_FIELDS), "label": number(values["label"])}


def number(label) -> float:
    """The label as a number.  Raises BadRow."""
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise BadRow(f"'label' is {label!r}, not a number")
    return value


def examples(rows, trained):
    """The inputs of each row, and its number."""
    return Examples([{**inputs, "labels": np.array(row.values["label"], np.float64)}
                     for inputs, row in zip(pairs.inputs(rows, trained, trained.max_length), rows, strict=True)])


def metrics(answers, rows):
    """The mean squared error, and the correlations of Pearson and of Spearman."""
    return scores.number_metrics(answers, [row.values["label"] for row in rows])


task = Task(
    name="regress",
    summary="a number for a text or a pair of texts: a grade, a similarity",
    fields=("text", "label"),
    optional_fields=classify.OPTIONAL_FIELDS,
    usable=usable,
    head="classification",
    outputs=("LABEL_0",),
    problem_type="regression",
    texts=lambda values: [text for text in values.values() if isinstance(text, str)],
    examples=examples,
    lengths=classify.lengths,
    predict=classify.predict,
    metrics=metrics,
    metric_names=("mean_squared_error", "pearson", "spearman"))
