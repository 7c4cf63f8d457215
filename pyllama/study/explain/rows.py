"""A row of a task, from a text and its answer: the batch that fine-tuning would see."""
from typing import NamedTuple

import numpy as np

from pyllama.errors import UserError, counted
from pyllama.tasks import foreign, scores
from pyllama.tasks.columns import listed
from pyllama.tasks.readable import readable
from pyllama.tasks.rows import BadRow, Row
from pyllama.tasks.task import Task, Trained, labels_of, learned_limit
from pyllama.training.examples import collate


class Given(NamedTuple):
    """A text and what belongs to it; None: it is not given.

    text        the first field of the task's rows, such as text, source or context
    text_pair   the second field: the other text of a pair, a question, the input of an instruction
    label       the answer of a task whose answers are classes or numbers; of words, a tag for each, between spaces
    target      the answer of a task whose answers are texts
    """
    text: str
    text_pair: str | None = None
    label: str | None = None
    target: str | None = None

    @property
    def extras(self) -> dict[str, str]:
        """What is given besides the text."""
        return {name: value for name, value in self._asdict().items() if name != "text" and value is not None}


def batch(task: Task, given: Given, trained: Trained) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """(the inputs of the model's loss, notes), as fine-tuning on this row computes them.

    Raises UserError if the task's row needs something else, or if the tokenizer or the model cannot take it.
    """
    row = row_of(task, given, trained)
    readable(task, [row], trained, in_file=False)
    if task.fits and not all(task.fits([row], trained)):
        raise UserError(f"the text leaves no room for an answer in {learned_limit(trained)}; shorten it")
    examples = task.examples([row], trained).rows
    if len(examples) > 1:
        raise UserError(f"the text takes {len(examples)} windows of {trained.max_length} tokens, but a page explains a "
                        f"single one; shorten it")
    lengths = task.lengths([row], trained) if task.lengths else [0]
    notes = (f"the text has {lengths[0]:,} tokens and is truncated at {learned_limit(trained)}",)
    return collate(examples).inputs, notes if lengths[0] > trained.max_length else ()


def answer_name(task: Task) -> str:
    """"label" if the task's answers are classes or numbers, "target" if they are texts."""
    return "label" if task.labels or task.outputs else "target"


def row_of(task: Task, given: Given, trained: Trained) -> Row:
    """The row.  Raises UserError if a part is absent, unknown or of no use."""
    check_parts(task, given, trained)
    answer, config = given.extras[answer_name(task)], trained.config
    try:
        values = tagged(task, given.text, answer) if task.head == "tagging" else task.usable(task.unpacked(
            {**dict(zip(texts_of(task), filter(None, (given.text, given.text_pair)), strict=False)),
             task.fields[-1]: answer}))
    except BadRow as error:
        raise UserError(f"the row is invalid: {error}; fix it") from None
    if task.name == "classify" and (problem := scores.problem_of(config)) != "single_label_classification":
        raise UserError(f"config.json has the problem_type {problem}, for which no task here has a loss; give a model "
                        f"with one class for each text")
    row, = foreign.with_names(task, [Row("the text", values)], config)
    check_names(task, row, config)
    return row


def texts_of(task: Task) -> tuple[str, ...]:
    """The fields with the texts of a row, those that it may lack behind the others."""
    return *task.fields[:-1], *task.optional_fields


def check_parts(task: Task, given: Given, trained: Trained) -> None:
    """Raise UserError unless the parts are those of the task's rows."""
    wanted, texts = answer_name(task), texts_of(task)
    unwanted = ({"label", "target"} - {wanted} | ({"text_pair"} if len(texts) < 2 else set())) & given.extras.keys()
    if not given.text.strip():
        raise UserError("the text is empty; give one")
    if unwanted:
        raise UserError(f"the model was trained on the task {task.name}, which has no {min(unwanted)}; remove it")
    if wanted not in given.extras:
        raise UserError(f"the loss of the task {task.name} needs the {task.fields[-1]} of the text; set {wanted} to "
                        f"{choices(task, trained.config)}")
    if given.text_pair is None and len(task.fields) > 2:
        raise UserError(f"the task {task.name} reads {' and '.join(task.fields[:-1])}; set text_pair to the "
                        f"{task.fields[1]}")


def choices(task: Task, config) -> str:
    """The answers that may be given, in words."""
    if answer_name(task) == "target":
        return "a text"
    if not task.labels:
        return "a number"
    names = listed(labels_of(config))
    return f"the tag of each word, between spaces: {names}" if task.head == "tagging" else f"one of {names}"


def tagged(task: Task, text: str, label: str) -> dict:
    """The row of a text with a tag for each word.  Raises UserError if their numbers differ."""
    row = task.question(task.unpacked({task.fields[0]: text}))
    words, tags = [text[first:past] for first, past in row["words"]], label.split()
    if len(tags) != len(words):
        raise UserError(f"the text has {counted(len(words), 'word')} ({listed(words)}), but label has "
                        f"{counted(len(tags), 'tag')}; give one for each word, between spaces")
    return {**row, task.fields[-1]: tags}


def check_names(task: Task, row: Row, config) -> None:
    """Raise UserError if the row has a class that the model does not have."""
    answer, names = row.values[task.fields[-1]], labels_of(config)
    asked = answer if isinstance(answer, list) else [answer]
    unknown = [name for name in asked if name not in names] if task.labels else []
    if unknown:
        raise UserError(f"label has {unknown[0]!r}, but the model has {listed(names)}; give one of these")
