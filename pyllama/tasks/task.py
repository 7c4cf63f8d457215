"""A task: which rows it reads, which head it puts on a model, what it predicts, how that is measured."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyllama import models
from pyllama.errors import UserError
from pyllama.tasks.rows import BadRow, Reader, Row, texts_of
from pyllama.text import special
from pyllama.text.special import encode  # noqa: F401
from pyllama.text.tokenizer import Tokenizer
from pyllama.training.examples import Examples


class Trained(NamedTuple):
    """A model at work on a task."""
    config: Any
    params: dict
    tokenizer: Tokenizer
    max_length: int                             # tokens of a text, special ones included; what is longer is cut


def no_notes(rows, trained, search):
    return ()


def no_model_metrics(rows, trained):
    return {}


def no_export(path):
    raise UserError(f"this task has nothing to write into {path} but its answers; leave --export out and use --out")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the jobs people use language models for; the fields stand in the order in which a run needs them."""

    name: str
    summary: str                                # one line, for lists

    # Rows
    fields: tuple[str, ...]                     # what a row has, the answer last
    optional_fields: tuple[str, ...] = ()       # texts that a row may have besides
    readers: dict[str, Reader] = field(default_factory=dict)    # for files of a form of the task's own, by suffix
    usable: Callable[[dict], dict]              # a row as the task wants it; raises BadRow
    askable: Callable[[dict], dict] | None = None       # a row without its answer; raises BadRow; None: its texts

    # The model and its tokenizer
    head: str                                   # every family that has this head can do the task: see models()
    labels: Callable[[Sequence[Row]], list[str]] | None = None  # the classes that occur, where there are some
    markers: tuple[str, ...] = ()               # tokens by which texts of this task mark something
    texts: Callable[[dict], Sequence[str]] | None = None        # of a row, what a tokenizer learns from; None: fields
    tokenizer: Callable[..., Tokenizer] = special.byte_pairs    # learns: (texts, vocab_size, marks=markers)

    # Examples
    fits: Callable[[Sequence[Row], Trained], list[bool]] | None = None      # is there room for each row?  None: yes
    examples: Callable[[Sequence[Row], Trained], Examples]

    # Predictions; the last argument is a SearchConfig
    predict: Callable[[Sequence[Row], Trained, Any], list]      # an answer for each row
    notes: Callable[[Sequence[Row], Trained, Any], Sequence[str]] = no_notes    # what to say beside the answers

    # Metrics
    metrics: Callable[[list, Sequence[Row]], dict]              # of the answers
    model_metrics: Callable[[Sequence[Row], Trained], dict] = no_model_metrics  # beside those of the answers
    metric_names: tuple[str, ...]               # for lists
    quick: bool = False                         # are the metrics worth taking while the model trains?
    packages: tuple[str, ...] = ()              # that take the metrics

    # A file of all answers together: path -> (rows, answers) -> (the file's bytes, what is in it); raises UserError if
    # the task has no such file
    export: Callable[[Path], Callable[[Sequence[Row], list], tuple[bytes, str]]] = no_export

    def question(self, values: dict) -> dict:
        """A row without its answer, as the task wants it.  Raises BadRow."""
        if self.askable:
            return self.askable(values)
        return texts_of(values, self.fields[:-1], self.optional_fields)

    def models(self) -> list[str]:
        """The families that can do it."""
        return models.families_with(self.head)

    @property
    def writes(self) -> bool:
        """Are its answers texts, written token by token?"""
        return self.head in ("lm", "seq2seq")


def rows_of(task: Task, inputs: Sequence[str | dict]) -> list[Row]:
    """The rows of texts, or of dicts without the answer, to be answered.

    Raises UserError if a text is given and the task reads several fields, or an input cannot be used.
    """
    asked = task.fields[:-1]
    rows = []
    for number, given in enumerate(inputs, 1):
        if isinstance(given, str) and len(asked) > 1:
            raise UserError(f"{task.name} reads {' and '.join(asked)}, which one text cannot give; give rows with "
                            f"these fields (--data FILE)")
        values = {asked[0]: given} if isinstance(given, str) else given
        try:
            rows.append(Row(f"input {number}", task.question(values)))
        except BadRow as error:
            raise UserError(f"input {number} cannot be used: {error}; fix it") from None
    return rows


def number_of(label: str, config) -> int:
    """The class's number in a configuration.  Raises UserError if the model does not know it."""
    names = labels_of(config)
    if label not in names:
        raise UserError(f"the model knows the classes {', '.join(names[:9])}{', ...' * (len(names) > 9)}, but not "
                        f"{label!r}; train it on rows that have it")
    return names.index(label)


def labels_of(config) -> list[str]:
    """The classes' names, from the configuration's id2label."""
    return [name for _, name in sorted(config.extra.get("id2label", {}).items(), key=lambda pair: int(pair[0]))]
