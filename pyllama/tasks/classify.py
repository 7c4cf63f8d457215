"""Text classification: sentiment, or any labels; of pairs of texts: inference, paraphrases."""
from collections import Counter

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError
from pyllama.tasks import pairs
from pyllama.tasks.answers import ByClass
from pyllama.tasks.labels import in_order, notes
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
    """(the most likely class of each text, {its probability, the probabilities of all classes})"""
    names, answers, details = labels_of(trained.config), [], []
    for row in probabilities(rows, trained):
        best = int(row.argmax())
        answers.append(names[best])
        shares = ByClass((name, round(float(p), 6)) for name, p in zip(names, row, strict=True))
        details.append({"probability": shares[names[best]], "probabilities": shares})
    return answers, details


def lengths(rows, trained):
    """The number of tokens of each text or pair, with special ones."""
    return [len(inputs["ids"]) for inputs in pairs.inputs(rows, trained)]


@memory.arena()
@machine.one_blas_thread()
def probabilities(rows, trained):
    """Of each class for each text: [N C], softmax of the scores."""
    texts = Examples(pairs.inputs(rows, trained, trained.max_length))
    parts = []
    for _, batch in texts.in_turn(AT_ONCE):
        z, _ = trained.config.model.logits(p=trained.params, c=trained.config, **batch.inputs)
        e = np.exp(z.astype(np.float64) - z.max(axis=-1, keepdims=True))
        parts.append(e / e.sum(axis=-1, keepdims=True))
    return np.concatenate(parts)


def metrics(answers, rows):
    """Accuracy, precision, recall and F1 as shares of 1; the confusion matrix [C C], a row for each true class.

    macro    the mean over the classes; a class that is never predicted has precision 0
    micro    over all decisions, where F1 equals the accuracy
    """
    truth = [row.values["label"] for row in rows]
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
