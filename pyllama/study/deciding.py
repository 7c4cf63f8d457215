"""Which tokens decided: the answer of a model, attributed to the tokens of its text.

The score of a class is its log-probability: adding a number to all of the model's scores does not change it, and its
differences are in nats, as losses are.  The score of a text that the model wrote is the sum of the log-probabilities of
its tokens and its end.  The score of a number is the number.

The vectors are the embeddings of the tokens.  Special tokens around a text keep theirs in the baseline, so nothing is
attributed to them.  So do positions and token types, and the tokens of the answer.  A decoder that reads the same text,
shifted, as that of a BART that classifies does, reads the same vectors.
"""
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError
from pyllama.ops.softmax import log_sum_exp
from pyllama.study.attribution import AT_ONCE, Attribution, gradient_times_input, integrated_gradients
from pyllama.study.seam import run
from pyllama.study.spelling import spelled
from pyllama.tasks import pairs, scores
from pyllama.tasks.columns import listed
from pyllama.tasks.rows import Row
from pyllama.tasks.task import Task, Trained, labels_of
from pyllama.text import special
from pyllama.training.examples import IGNORE

Method = Literal["integrated", "gradient"]
Baseline = Literal["mask", "pad", "mean", "zero"]
Kind = Literal["class", "number", "text"]
Scored = tuple[np.ndarray, np.ndarray]          # a score [N], and ∂score/∂z [N ...]

METHODS = {"integrated": integrated_gradients, "gradient": gradient_times_input}
ROOM = 2 ** 24                                  # of a model's scores z that are computed together


@dataclass(frozen=True)
class Asked:
    """Whether and how answers are explained.

    Raises UserError for a setting of an explanation that is not asked for.
    """

    explain: Method | None = None               # also say what each token adds to the score (alone: integrated)
    target: str | None = None                   # class whose score is explained (default: the likeliest)
    baseline: Baseline | None = None            # what replaces each token (default: the one with the lowest score)

    def __post_init__(self):
        set_alone = [name for name in ("target", "baseline") if getattr(self, name) is not None]
        if self.explain is None and set_alone:
            raise UserError(f"{set_alone[0]} has no effect without explain; add explain, or remove it")


class Question(NamedTuple):
    """A score to explain.

    inputs      {ids [T]} and what else the model's logits() takes
    own         [T] of a special token, or of the answer: the baseline does not replace it
    score       of the model's scores z [N ...]
    target      the class, or the text that was written; "" of a number
    length      number of tokens before the answer, if that is among ids; else T
    """
    inputs: dict[str, np.ndarray]
    own: np.ndarray
    score: Callable[[np.ndarray], Scored]
    kind: Kind
    target: str
    length: int


class Reason(NamedTuple):
    """Why a text has a score.

    target      see Question
    tokens      of the text, special ones too, as text
    """
    kind: Kind
    target: str
    tokens: list[str]
    attribution: Attribution
    method: Method
    baseline: Baseline


def check(task: Task, asked: Asked) -> None:
    """Raise UserError if the answers of the task cannot be explained, or have no target."""
    if task.head not in ("classification", "lm", "seq2seq"):
        raise UserError(f"the answers of {task.name} cannot be explained, only a class, a number or a text; leave "
                        f"explain out")
    if task.writes and asked.target is not None:
        raise UserError(f"{task.name} answers with a text, so it has no class to explain; remove target")


@memory.arena()
@machine.one_blas_thread()
def reasons(task: Task, rows: Sequence[Row], answers: Sequence, trained: Trained, asked: Asked) -> list[Reason | None]:
    """The Reason of each row; None where there is no room for an answer.

    Raises UserError if the model does not have the class, the tokenizer does not have the token of the baseline, or a
    score is not finite.
    """
    method: Method = asked.explain or "integrated"
    questions: Iterable[Question | None]
    if task.writes:
        questions = (of_text(task, row, answer, trained) for row, answer in zip(rows, answers, strict=True))
    else:
        index = None if asked.target is None else class_of(asked.target, trained)
        questions = (of_class(inputs, trained, index) for inputs in pairs.inputs(rows, trained, trained.max_length))
    return [question and reason(question, trained, method, asked.baseline) for question in questions]


def reason(question: Question, trained: Trained, method: Method, baseline: Baseline | None = None) -> Reason:
    """The Reason of a score."""
    ids = question.inputs["ids"]
    z, seam, _ = run(question.inputs, trained)
    x, f = seam.table[ids], score_of(question, trained)
    bases = {name: np.where(question.own[:, None], x, vector(name, trained, seam.table)).astype(x.dtype)
             for name in ([baseline] if baseline else candidates(trained))}
    chosen = min(bases, key=lambda name: 0 if question.kind == "number" else f(bases[name][None])[0][0])
    found = METHODS[method](f, x, bases[chosen], at_once=max(1, min(AT_ONCE, ROOM // z.size)))
    if not np.isfinite([*found.shares, found.score, found.base]).all():
        raise UserError("the scores of a text are not finite, so that no token explains them; leave explain out")
    tokens = [spelled(trained.tokenizer, i) for i in ids[:question.length]]
    return Reason(question.kind, question.target, tokens, found._replace(shares=found.shares[:question.length]), method,
                  chosen)


def score_of(question: Question, trained: Trained):
    """The score as a function of the text's vectors: see attribution.Score."""
    def f(points):
        z, seam, logits_back = run(question.inputs, trained, points)
        value, dz = question.score(z)

        def back(dvalue):
            logits_back(dz * dvalue.reshape(-1, *[1] * (z.ndim - 1)).astype(z.dtype))
            return seam.gradient

        return value, back

    return f


# --- questions --------------------------------------------------------------------------------------------------------

def of_class(inputs: dict[str, np.ndarray], trained: Trained, index: int | None = None) -> Question:
    """Why has the text with these inputs the class of this number?  None: the likeliest one."""
    problem, ids = scores.problem_of(trained.config), inputs["ids"]
    chosen = int(run(inputs, trained)[0][0].argmax()) if index is None else index
    kind: Kind = "number" if trained.config.num_labels == 1 else "class"
    target = labels_of(trained.config)[chosen] if kind == "class" else ""
    return Question(inputs, np.isin(ids, surrounding(trained)), lambda z: class_score(z, chosen, problem), kind, target,
                    len(ids))


def of_text(task: Task, row: Row, answer: str, trained: Trained) -> Question | None:
    """Why did the model write this answer to the row?  None: there is no room for it."""
    rows = task.examples([row._replace(values={**row.values, task.fields[-1]: answer})], trained).rows
    if not rows:
        return None
    ids, labels = rows[0]["ids"], rows[0]["labels"]
    own = np.isin(ids, surrounding(trained))
    if task.head == "seq2seq":
        places = np.arange(len(labels))
        return Question({"ids": ids, "labels": labels}, own, lambda z: text_score(z, places, labels), "text", answer,
                        len(ids))
    first = 1 + int(np.flatnonzero(labels == IGNORE).max(initial=0))        # behind earlier responses, which are labels
    places = np.arange(first - 1, len(ids) - 1)
    return Question({"ids": ids}, own | (np.arange(len(ids)) >= first), lambda z: text_score(z, places, ids[first:]),
                    "text", answer, first)


def class_of(target: str, trained: Trained) -> int:
    """The number of a class.  Raises UserError if the model does not have it."""
    names = labels_of(trained.config)
    if trained.config.num_labels == 1:
        raise UserError("the model answers with a number, so it has no class to explain; remove target")
    if target not in names:
        raise UserError(f"target is {target!r}, but the model has the classes {listed(names)}; choose one of them")
    return names.index(target)


def surrounding(trained: Trained) -> list[int]:
    """The ids of the special tokens around texts and between them: not of markers, or of what is unknown."""
    tokenizer = trained.tokenizer
    inside = (*trained.markers, tokenizer.special_token("unk_token"))
    around = itertools.chain(*special.around(tokenizer, texts=2))
    return sorted({*tokenizer.special_ids, *around} - {tokenizer.rust.token_to_id(token) for token in inside if token})


# --- scores -----------------------------------------------------------------------------------------------------------

def class_score(z: np.ndarray, index: int, problem: str) -> Scored:
    """The score of a class from z [N C]; problem: see tasks.scores.PROBLEMS.

    A class has its log-probability, log softmax(z)_c or, of several classes, log σ(z_c); a number is z_c itself.
    """
    chosen = np.zeros_like(z)
    chosen[:, index] = 1
    if problem == "regression":
        return z[:, index], chosen
    if problem == "multi_label_classification":
        value = -np.logaddexp(0, -z[:, index])
        return value, chosen * -np.expm1(value)[:, None]
    log_p = z - log_sum_exp(z)
    return log_p[:, index], chosen - np.exp(log_p)


def text_score(z: np.ndarray, places: np.ndarray, targets: np.ndarray) -> Scored:
    """Σ_t log softmax(z_t) of the targets [T'] at these places of z [N T V]."""
    log_p = z[:, places] - log_sum_exp(z[:, places])
    rows = np.arange(len(places))
    dz = np.zeros_like(z)
    dz[:, places] = -np.exp(log_p)
    dz[:, places, targets] += 1
    return log_p[:, rows, targets].sum(axis=-1, dtype=np.float64), dz


# --- the baseline -----------------------------------------------------------------------------------------------------

def candidates(trained: Trained) -> list[Baseline]:
    """The baselines, if none is named: those of the tokens that the tokenizer has, and the mean.

    The one with the lowest score is taken, because a baseline should have no trace of the answer (Sundararajan et al.,
    2017, section 3); of a number, the first.
    """
    tokens: dict[Baseline, int | None] = {"mask": trained.tokenizer.mask_id, "pad": trained.tokenizer.pad_id}
    return [*(name for name, i in tokens.items() if i is not None), "mean"]


def vector(name: str, trained: Trained, table: np.ndarray) -> np.ndarray:
    """The baseline [D] of a token, from the table of embeddings [V D].  Raises UserError if there is none."""
    if name in ("mean", "zero"):
        return table.mean(axis=0, dtype=np.float64) * (name == "mean")
    found = trained.tokenizer.mask_id if name == "mask" else trained.tokenizer.pad_id
    if found is None:
        raise UserError(f"the tokenizer has no {name} token for a baseline; choose the baseline mean or zero")
    return table[found]
