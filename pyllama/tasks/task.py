"""The form of a task: which rows it reads, which head it puts on a model, what it predicts, how that is measured."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyllama import models
from pyllama.errors import UserError
from pyllama.tasks.rows import Reader, Row
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


def no_export(path):
    raise UserError(f"this task has nothing to write into {path} but its answers; leave --export out and use --out")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the jobs people use language models for.  The fields are in the order of a task's life."""
    name: str
    about: str                                  # one line, for lists

    # Its rows
    fields: tuple[str, ...]                     # what a row has, the answer last
    also: tuple[str, ...] = ()                  # texts that a row may have besides
    usable: Callable[[dict], dict]              # a row as wanted, or BadRow
    askable: Callable[[dict], dict] | None = None       # a row without its answer, or BadRow; None: its texts
    readers: dict[str, Reader] = field(default_factory=dict)    # for files of its own form, by suffix

    # Its model
    head: str                                   # every family that has this head can do the task: see models()
    labels: Callable[[Sequence[Row]], list[str]] | None = None  # the classes that occur, where there are some
    tokenizer: Callable[..., Tokenizer] = special.byte_pairs    # learnt: (texts, how many tokens, marks=marks)
    marks: tuple[str, ...] = ()                 # tokens that texts of this task mark something by
    texts: Callable[[dict], Sequence[str]] | None = None        # of a row, what a tokenizer learns from; None: fields

    # Learning and answering
    examples: Callable[[Sequence[Row], Trained], Examples]
    fits: Callable[[Sequence[Row], Trained], list[bool]] | None = None      # has it room for the rows?  None: for all
    predict: Callable[[Sequence[Row], Trained, Any], list]      # an answer for each row; the last: a SearchConfig

    # Measures
    metrics: Callable[[list, Sequence[Row]], dict]              # of the answers
    of_model: Callable[[Sequence[Row], Trained], dict] | None = None    # measures beside those of the answers
    quick: bool = False                         # are its metrics worth taking while it trains?
    measures: tuple[str, ...] = ()              # the names of what is measured, for lists
    needs: tuple[str, ...] = ()                 # packages that measure it
    # a file's name -> (rows, answers) -> the file's bytes and what is in it: what the answers say together; UserError
    # if there is none
    export: Callable[[Path], Callable[[Sequence[Row], list], tuple[bytes, str]]] = no_export

    def models(self) -> list[str]:
        """The families that can do it."""
        return models.with_head(self.head)

    @property
    def writes(self) -> bool:
        """Are its answers texts, written token by token?"""
        return self.head in ("lm", "seq2seq")


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
