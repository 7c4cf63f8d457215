"""Text classification: sentiment, or any labels; of pairs of texts: inference, paraphrases."""
from collections import Counter

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError
from pyllama.tasks import pairs, scores
from pyllama.tasks.labels import alike, in_order, notes
from pyllama.tasks.rows import BadRow, texts_of
from pyllama.tasks.task import Task, labels_of, number_of
from pyllama.training.examples import Examples

OPTIONAL_FIELDS = ("text_pair",)
AT_ONCE = 32                                                # texts in a batch of predict()


def usable(values):
    """{text, label} of a row, and its text_pair if it has one.  Raises BadRow."""
    return {**texts_of(values, ("text",), OPTIONAL_FIELDS), "label": label_of(values["label"])}


def label_of(label) -> str:
    """The name of a class, without white space around it; of a number its digits, of 1.0 those of 1.  Raises BadRow."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int | float) or label != label or not str(label).strip():
        raise BadRow(f"'label' is {label!r}, not a name or a number")
    return str(label).strip()


def one_name(rows):
    """The rows with one name for each class: 1 for 1.0 in a .csv, where all labels are numbers."""
    names = alike(row.values["label"] for row in rows)
    return [row._replace(values={**row.values, "label": names[row.values["label"]]}) for row in rows]


def labels(rows):
    """The names of the classes in order.  Raises UserError if there is only one."""
    names = in_order(row.values["label"] for row in rows)
    if len(names) < 2:
        raise UserError(f"every row has the label {names[0]!r}; give rows of at least 2 classes")
    return names


def examples(rows, trained):
    """The inputs of each row, its label, and the label's weight if the classes are weighted."""
    labels = [number_of(row.values["label"], trained.config) for row in rows]
    weights = trained.entry.get("class_weights")
    return Examples([{**inputs, "labels": label, **({"weights": weights[label]} if weights else {})}
                     for inputs, label in zip(pairs.inputs(rows, trained, trained.max_length), labels, strict=True)])


def predict(rows, trained, search=None):
    """The most likely class of each text, a name."""
    return detailed(rows, trained)[0]


def detailed(rows, trained, search=None):
    """(the answer to each text, {its probability, the probabilities of all classes}); see scores.answer."""
    names, problem = labels_of(trained.config), scores.problem_of(trained.config)
    pairs_of = [scores.answer(z, names, problem) for z in scores_of(rows, trained)]
    return [answer for answer, _ in pairs_of], [detail for _, detail in pairs_of]


def lengths(rows, trained):
    """The number of tokens of each text or pair, with special ones."""
    return [len(inputs["ids"]) for inputs in pairs.inputs(rows, trained)]


@memory.arena()
@machine.one_blas_thread()
def scores_of(rows, trained):
    """The scores of the classes for each text: [N C], float64."""
    inputs = pairs.inputs(rows, trained, trained.max_length)
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]["ids"]))     # little padding
    scores = np.zeros((len(inputs), trained.config.num_labels))
    for first, batch in Examples([inputs[i] for i in order]).in_turn(AT_ONCE):
        scores[order[first:first + AT_ONCE]] = trained.scores(batch.inputs)
    return scores


def metrics(answers, rows):
    """Accuracy, precision, recall and F1 as shares of 1; the confusion matrix [C C], a row for each true class.

    macro    the mean over the classes; a class that is never predicted has precision 0
    micro    over all decisions, where F1 equals the accuracy

    Of models that answer with numbers or several classes: see scores.py.
    """
    truth = [row.values["label"] for row in rows]
    if answers and isinstance(answers[0], float):
        return scores.number_metrics(answers, truth)
    if answers and isinstance(answers[0], list) and answers[0] and isinstance(answers[0][0], float):
        raise UserError("the model answers each text with several numbers, which no metric here compares with a label; "
                        "use predict")
    if answers and isinstance(answers[0], list):
        return scores.set_metrics(answers, truth)
    names = in_order([*truth, *answers])
    index = {name: i for i, name in enumerate(names)}
    confusion = np.zeros((len(names), len(names)), int)
    for (true, answer), count in Counter(zip(truth, answers, strict=True)).items():
        confusion[index[true], index[answer]] = count
    right, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(true + predicted, 1)
    accuracy = float(right.sum() / len(truth))
    return {"accuracy": accuracy, "precision_macro": float(precision.mean()), "recall_macro": float(recall.mean()),
            "f1_macro": float(f1.mean()), "f1_micro": accuracy, "rows": len(truth), "labels": names,
            "confusion": confusion.tolist()}


task = Task(
    name="classify",
    summary="the class of a text or of a pair of texts: sentiment, inference, or any labels",
    fields=("text", "label"),
    optional_fields=OPTIONAL_FIELDS,
    usable=usable,
    alike=one_name,
    remarks=lambda rows: notes(row.values["label"] for row in rows),
    head="classification",
    texts=lambda values: list(values.values()),
    labels=labels,
    examples=examples,
    lengths=lengths,
    predict=predict,
    detailed=detailed,
    metrics=metrics,
    metric_names=("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro", "confusion"),
    quick=True)
