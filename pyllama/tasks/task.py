"""The definition of a task: its rows, the head it needs, its examples, predictions and metrics."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pyllama import models
from pyllama.errors import UserError, counted
from pyllama.low import widened
from pyllama.tasks.columns import listed
from pyllama.tasks.rows import BadRow, Reader, Row, Source, read, texts_of
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training.examples import Examples


class Trained(NamedTuple):
    """A model that was trained on a task."""
    config: Any
    params: dict
    tokenizer: Tokenizer
    max_length: int                             # maximum tokens of a text, with special ones; longer ones are truncated
    markers: tuple[str, ...] = ()               # the special tokens that texts may spell: those of the task

    @property
    def entry(self) -> dict:
        """The entry "task" of config.json, which the training stored."""
        return self.config.extra.get("task", {})

    def scores(self, inputs: dict) -> Any:
        """The scores of the head for the inputs of a batch; those of bfloat16 as float32."""
        return widened(self.config.model.logits(p=self.params, c=self.config, **inputs)[0])


def no_notes(rows, trained, search):
    """The default of Task.notes."""
    return ()


def as_it_is(answer):
    """The default of Task.shown."""
    return answer


def no_remarks(rows):
    """The default of Task.remarks."""
    return ()


def no_model_metrics(rows, trained):
    """The default of Task.model_metrics."""
    return {}


def no_export(path):
    """The default of Task.export."""
    raise UserError(f"this task has nothing to export to {path}; use out for its answers")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that models are fine-tuned on.  The fields are in the order in which a run needs them.

    rows is a sequence of Row, trained a Trained, search a SearchConfig or None.
    """

    name: str
    summary: str                                # one line, for lists

    # Rows
    fields: tuple[str, ...]                     # the fields of a row, the answer last
    optional_fields: tuple[str, ...] = ()       # texts that a row may also have
    readers: dict[str, Reader] = field(default_factory=dict)    # for the task's own file formats, by suffix
    unpacked: Callable[[dict], dict] = dict     # a row of a file with the fields that others contain; raises BadRow
    containers: tuple[str, ...] = ()            # fields that contain all others
    usable: Callable[[dict], dict]              # a row as the task needs it, from its fields; raises BadRow
    askable: Callable[[dict], dict] | None = None       # the same without the answer; None: the texts of the fields

    alike: Callable[[Sequence[Row]], list[Row]] = list      # the rows of a training with one name for each class
    remarks: Callable[[Sequence[Row]], Sequence[str]] = no_remarks      # notes on the rows of a training

    # The model and its tokenizer
    head: str                                   # every family with this head can do the task: see models()
    labels: Callable[[Sequence[Row]], list[str]] | None = None  # the classes that occur, if there are any
    outputs: tuple[str, ...] = ()               # names of the head's scores, if they are not those of labels
    problem_type: str | None = None             # Hugging Face's name of another loss than that of classes
    markers: tuple[str, ...] = ()               # tokens that mark parts of this task's texts
    texts: Callable[[dict], Sequence[str]] | None = None        # of a row, to learn a tokenizer from; None: all fields
    tokenizer: Callable[..., Tokenizer] = special.byte_pairs    # (texts, vocab_size, marks=markers)

    stored: dict[str, Any] = field(default_factory=dict)        # kept with a model, in config.extra["task"]

    # Examples
    fits: Callable[[Sequence[Row], Trained], list[bool]] | None = None      # does each row fit?  None: yes
    lengths: Callable[[Sequence[Row], Trained], list[int]] | None = None    # the max_length that truncates no text of
                                                                            # the row; None: no text is truncated
    examples: Callable[[Sequence[Row], Trained], Examples]

    # Predictions, from (rows, trained, search)
    predict: Callable[[Sequence[Row], Trained, Any], list]      # an answer for each row
    # (answers, a dict of details for each, such as its probability)
    detailed: Callable[[Sequence[Row], Trained, Any], tuple[list, list[dict]]] | None = None
    # What an answer depends on besides the parameters, from (validation rows, trained); kept as `stored` is
    calibrated: Callable[[Sequence[Row], Trained], dict] | None = None
    notes: Callable[[Sequence[Row], Trained, Any], Sequence[str]] = no_notes    # for the user, beside the answers
    shown: Callable[[Any], Any] = as_it_is                      # an answer as JSON, for the user

    # Metrics
    metrics: Callable[[list, Sequence[Row]], dict]              # of the answers to the rows
    model_metrics: Callable[[Sequence[Row], Trained], dict] = no_model_metrics  # that need the model
    metric_names: tuple[str, ...]               # for lists
    quick: bool = False                         # are the metrics quick enough to compute at each evaluation?
    ranked_by: str = "accuracy"                 # if so, the metric that selects the best checkpoint, where it applies
    packages: tuple[str, ...] = ()              # that compute the metrics

    # A file of all answers together: path -> (rows, answers) -> (the file's bytes, its content in words).  Raises
    # UserError if the task has no such file.
    export: Callable[[Path], Callable[[Sequence[Row], list], tuple[bytes, str]]] = no_export

    def question(self, values: dict) -> dict:
        """A row without its answer, as the task needs it, from its fields.  Raises BadRow."""
        if self.askable:
            return self.askable(values)
        return texts_of(values, self.fields[:-1], self.optional_fields)

    def read(self, source: Source, answer: bool = True,
             all_optional: bool = False) -> tuple[list[Row], tuple[str, ...]]:
        """(rows, notes) of a file.  answer: must the rows have one?  See rows.read()."""
        if len(source.fields) == 1 and source.fields[0] in self.containers:
            source = replace(source, fields=())
        return read(source, self.fields, self.usable if answer else self.question, self.readers, answer,
                    optional=self.optional_fields, unpacked=self.unpacked, all_optional=all_optional)

    def answered(self, rows: Sequence[Row], trained: Trained, search: Any) -> tuple[list, list[dict]]:
        """(answers, details of each), for tasks without details empty ones."""
        if self.detailed:
            return self.detailed(rows, trained, search)
        return self.predict(rows, trained, search), [{} for _ in rows]

    def truncated(self, rows: Sequence[Row], trained: Trained, limit: str) -> tuple[str, ...]:
        """A note on the rows with a text that is truncated, if there are any.  limit: max_length in words."""
        lengths = self.lengths(rows, trained) if self.lengths else []
        too_long = [length for length in lengths if length > trained.max_length]
        if not too_long:
            return ()
        return (f"texts are truncated at {limit} in {len(too_long)} of {counted(len(rows), 'row')}; none would be at "
                f"{max(too_long)}",)

    def models(self) -> list[str]:
        """The names of the families that can do the task."""
        return models.families_with(self.head)

    @property
    def writes(self) -> bool:
        """Are the answers texts, generated token by token?"""
        return self.head in ("lm", "seq2seq")


def rows_of(task: Task, inputs: Sequence[str | dict]) -> list[Row]:
    """The rows of inputs to answer: texts, or dicts without the answer.

    Raises UserError if an input is a text and the task reads several fields, if it is neither a text nor a dict, or if
    it is invalid.
    """
    question_fields = task.fields[:-1]
    if not isinstance(inputs, Iterable):
        raise UserError(f"the inputs are {inputs!r}; give a text, a dict of {', '.join(question_fields)}, or a list of "
                        f"these")
    rows = []
    for number, question in enumerate(inputs, 1):
        if not isinstance(question, str | dict):
            raise UserError(f"input {number} is {question!r}; give a text, or a dict of {', '.join(question_fields)}")
        if isinstance(question, str) and len(question_fields) > 1:
            raise UserError(f"{task.name} reads {' and '.join(question_fields)}, not a single text; give rows with "
                            f"these fields")
        values = {question_fields[0]: question} if isinstance(question, str) else question
        try:
            rows.append(Row(f"input {number}", task.question(task.unpacked(values)), values, number))
        except BadRow as error:
            raise UserError(f"input {number} is invalid: {error}; fix it") from None
    return rows


def learned_limit(trained: Trained) -> str:
    """The maximum length of a text in words, for notes beside predictions."""
    return f"the {trained.max_length} tokens that the model was trained to read"


def number_of(label: str, config) -> int:
    """The index of a class in a configuration.  Raises UserError if the model does not have it."""
    names = labels_of(config)
    whole = labels_of(config, stripped=False)
    if label in whole:                                      # rows of a run of 0.1.0 may have both "good" and "good "
        return whole.index(label)
    if label not in names:
        raise UserError(f"the model has the classes {listed(names)}, but not {label!r}; train it on rows with this "
                        f"class")
    return names.index(label)


def labels_of(config, stripped: bool = True) -> list[str]:
    """The names of the classes, from the configuration's id2label, without white space around them if `stripped`."""
    numbered = sorted(config.extra.get("id2label", {}).items(), key=lambda pair: int(pair[0]))
    return [str(name).strip() if stripped else str(name) for _, name in numbered]
