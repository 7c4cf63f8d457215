"""Which tokens decided: the answer of a classifier, attributed to the tokens of its text.

The score of a class is its log-probability: adding a number to all of the model's scores does not change it, and its
differences are in nats, as losses are.  The score of a number is the number.

The vectors are the embeddings of the tokens.  Special tokens around a text keep theirs in the baseline, so nothing is
attributed to them.  So do positions and token types.  A decoder that reads the same text, shifted, as that of a BART
does, reads the same vectors.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError
from pyllama.op import watching
from pyllama.ops.softmax import log_sum_exp
from pyllama.study.attribution import Attribution, gradient_times_input, integrated_gradients
from pyllama.study.spelling import spelled
from pyllama.tasks import pairs, scores
from pyllama.tasks.columns import listed
from pyllama.tasks.rows import Row
from pyllama.tasks.task import Task, Trained, labels_of

Method = Literal["integrated", "gradient"]
Baseline = Literal["mask", "pad", "mean", "zero"]
METHODS = {"integrated": integrated_gradients, "gradient": gradient_times_input}


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


class Reason(NamedTuple):
    """Why a text has a score.

    target      the class whose log-probability it is; "" of a number
    tokens      of the text, special ones too, as text
    """
    target: str
    tokens: list[str]
    attribution: Attribution
    method: Method
    baseline: Baseline


def check(task: Task) -> None:
    """Raise UserError if the task's answers are neither classes nor numbers."""
    if task.head != "classification":
        raise UserError(f"the answers of {task.name} cannot be explained, only a class or a number of a whole text "
                        f"(classify, relations, regress); leave explain out")


@memory.arena()
@machine.one_blas_thread()
def reasons(rows: Sequence[Row], trained: Trained, asked: Asked) -> list[Reason]:
    """The Reason of the score of each row.

    Raises UserError if the model does not have the class, the tokenizer does not have the token of the baseline, or a
    score is not finite.
    """
    index = None if asked.target is None else class_of(asked.target, trained)
    return [reason(inputs, trained, asked.explain or "integrated", asked.baseline, index)
            for inputs in pairs.inputs(rows, trained, trained.max_length)]


def class_of(target: str, trained: Trained) -> int:
    """The number of a class.  Raises UserError if the model does not have it."""
    names = labels_of(trained.config)
    if trained.config.num_labels == 1:
        raise UserError("the model answers with a number, so it has no class to explain; remove target")
    if target not in names:
        raise UserError(f"target is {target!r}, but the model has the classes {listed(names)}; choose one of them")
    return names.index(target)


def reason(inputs: dict[str, np.ndarray], trained: Trained, method: Method, baseline: Baseline | None = None,
           index: int | None = None) -> Reason:
    """The Reason of the score of a text's inputs {ids [T]}, perhaps with types and mask [T]."""
    ids = inputs["ids"]
    z, seam, _ = run(inputs, trained)
    index = int(z[0].argmax()) if index is None else index
    x, f = seam.table[ids], score_of(inputs, trained, index)
    own = np.isin(ids, surrounding(trained))[:, None]
    bases = {name: np.where(own, x, vector(name, trained, seam.table)).astype(x.dtype)
             for name in ([baseline] if baseline else candidates(trained))}
    is_class = trained.config.num_labels > 1
    chosen = [*bases][int(np.argmin(f(np.stack([*bases.values()]))[0])) if is_class else 0]
    found = METHODS[method](f, x, bases[chosen])
    if not np.isfinite([*found.shares, found.score, found.base]).all():
        raise UserError("the scores of a text are not finite, so that no token explains them; leave explain out")
    target = labels_of(trained.config)[index] if is_class else ""
    return Reason(target, [spelled(trained.tokenizer, i) for i in ids], found, method, chosen)


def surrounding(trained: Trained) -> list[int]:
    """The ids of special tokens that no text can spell."""
    marks = {trained.tokenizer.rust.token_to_id(mark) for mark in trained.markers}
    return [i for i in trained.tokenizer.special_ids if i not in marks]


# --- the baseline -----------------------------------------------------------------------------------------------------

def candidates(trained: Trained) -> list[Baseline]:
    """The baselines, if none is named: those of the tokens that the tokenizer has, and the mean.

    Of a class, the one with the lowest score is taken, because a baseline should have no trace of the answer
    (Sundararajan et al., 2017, section 3); of a number, the first.
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


# --- the model as a function of its vectors ---------------------------------------------------------------------------

class Seam:
    """Where a model looks up the embeddings of its tokens: `points` [N T D] are read instead, if there are any.

    ids         [N T], the very array that the model is given
    table       [V D] the embeddings, once they were looked up
    gradient    [N T D] of the points, after the backward pass
    """

    def __init__(self, ids: np.ndarray, points: np.ndarray | None = None):
        self.ids, self.points = ids, points
        self.table: Any = None
        self.gradient = None if points is None else np.zeros_like(points)

    def watch(self, op, call, inputs, options):
        """Watch a call of an op: see op.watching()."""
        y, back = call(*inputs, **options)
        if op.name != "embedding":
            return y, back
        ids, table = inputs
        if ids is self.ids:
            self.table = table
        if table is not self.table or self.points is None:
            return y, back
        places = copied(ids, self.ids)
        kept = places >= 0
        y[:, kept] = self.points[:, places[kept]]

        def back_to_points(dy):
            self.gradient[:, places[kept]] += dy[:, kept]
            return None, np.zeros_like(table)               # of the table nothing is asked

        return y, back_to_points


def copied(read: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The place in ids [N T] that each id of `read` [N T'] comes from: its own, the one before it in a decoder's input,
    or -1.

    >>> import numpy as np
    >>> from pyllama.study.deciding import copied
    >>> ids = np.array([[5, 6, 7]])
    >>> copied(ids, ids), copied(np.array([[2, 5, 6]]), ids)
    (array([0, 1, 2]), array([-1,  0,  1]))
    """
    places = np.arange(read.shape[1])
    if read is ids:
        return places
    is_shifted = read.shape == ids.shape and np.array_equal(read[:, 1:], ids[:, :-1])
    return places - 1 if is_shifted else np.full_like(places, -1)


def run(inputs: dict[str, np.ndarray], trained: Trained,
        points: np.ndarray | None = None) -> tuple[np.ndarray, Seam, Callable]:
    """(the scores z [N C] of a text at N points, the Seam, back(dz)); without points, N is 1."""
    count = 1 if points is None else len(points)
    batch = {name: np.repeat(array[None], count, axis=0) for name, array in inputs.items()}
    seam = Seam(batch["ids"], points)
    with watching(seam.watch):
        z, back = trained.config.model.logits(p=trained.params, c=trained.config, **batch)
    return z, seam, back


def score_of(inputs: dict[str, np.ndarray], trained: Trained, index: int):
    """The score of class `index` as a function of the text's vectors: see attribution.Score."""
    problem = scores.problem_of(trained.config)

    def f(points):
        z, seam, logits_back = run(inputs, trained, points)
        value, dz = score(z, index, problem)

        def back(dvalue):
            logits_back(dz * dvalue[:, None].astype(z.dtype))
            return seam.gradient

        return value, back

    return f


def score(z: np.ndarray, index: int, problem: str) -> tuple[np.ndarray, np.ndarray]:
    """(the score [N] of a class, ∂score/∂z [N C]) from z [N C]; problem: see tasks.scores.PROBLEMS.

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
