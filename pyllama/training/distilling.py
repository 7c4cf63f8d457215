"""The loss of distillation: a student learns from its labels and from a teacher's scores.

    loss = α cross-entropy + (1 - α) T² KL + hidden · distance of the last hidden states
           + attention · divergence of the last layers' attention

Each term is a mean over the targets that count.  See docs/distillation.md; sources: Hinton et al., 2015; Gu et al.,
"MiniLLM", 2024, for the reverse divergence; Sanh et al., 2019, for the hidden states; Wang et al., 2020, for attention.

Axes: B batch, T time, D model, V vocabulary, N rows that have a target, K words that a cache has.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pyllama.device import on_host
from pyllama.errors import UserError, check_choices, with_article
from pyllama.low import rounded, total, widened
from pyllama.models import encoder
from pyllama.models.layers import token_scores
from pyllama.ops import cosine_distance, cross_entropy, kl_divergence, squared_distance, top_scores
from pyllama.rng import NO_DRAW
from pyllama.training.attention_transfer import LastAttention, attention_loss

IGNORE = -100
PIECE = 2**21                                   # scores at a time, as in linear_cross_entropy
DISTANCES = {"cosine": cosine_distance, "squared": squared_distance}


@dataclass(frozen=True)
class Distillation:
    """What a student learns from its teacher.  Raises UserError if a value is out of range.

    >>> from pyllama.training.distilling import Distillation
    >>> Distillation(temperature=4.0).alpha
    0.5
    """

    temperature: float = 1.0                    # divides the scores of both models before they are compared
    alpha: float = 0.5                          # weight of the labels; 1 - alpha is that of the teacher's scores
    divergence: Literal["forward", "reverse"] = "forward"   # forward: KL(teacher||student), else KL(student||teacher)
    hidden: float = 0.0                         # weight of the distance between the last hidden states
    distance: Literal["cosine", "squared"] = "cosine"       # distance of hidden states
    attention: float = 0.0                      # weight of the divergence between the last layers' attention
    cache: Path | None = None                   # folder that keeps the teacher's scores (default: they are not kept)
    top_k: int = 32                             # number of scores of a token in the cache

    def __post_init__(self):
        check_choices(self)
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha is {self.alpha}; it must lie between 0 (teacher alone) and 1 (labels alone)")
        for name in ("hidden", "attention"):
            if not 0 <= (weight := getattr(self, name)) < math.inf:
                raise UserError(f"{name} is {weight}; it must be at least 0")
            if weight and self.cache:
                kind = {"hidden": "hidden states", "attention": "attention"}[name]
                raise UserError(f"a cache keeps the teacher's scores, not its {kind}; remove {name} or cache")
        if self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1")


class Teacher(NamedTuple):
    """A model that teaches: its parameters and its configuration."""
    p: dict
    c: Any


class Scores(NamedTuple):
    """A teacher's scores of N rows."""
    scores: np.ndarray                          # [N V]; or [N K+1], the last for all words that ids lacks
    ids: np.ndarray | None = None               # [N K]


class Read(NamedTuple):
    """What a model computes of a text: its last hidden states, and what its output matrix turns into scores."""
    hidden: np.ndarray                          # [B T D]
    rows: np.ndarray                            # [B T D]
    table: dict                                 # of the output, as layers.token_scores takes it
    b: np.ndarray | None                        # [V]

    def scores(self, rows):
        """Of rows [N D]: (scores [N V], back);  back gives d_rows, d_table, db."""
        return token_scores(rows, self.table, self.b)


def loss_of(teacher: Teacher | None, s: Distillation) -> Callable:
    """A loss with the arguments of a language model's loss, for State.loss.

    teacher    None: batches have the teacher's scores, as teacher_ids [B T K] and
               teacher_scores [B T K+1]

    The gradient of the output matrix is computed with the loss, a few rows at a time, so that the scores of all rows
    never exist at once.  So dvalue is 1 alone within params.adding(): that gradient has been added already.
    """
    def loss(ids, labels, p, c, *, mask=None, segments=None, draw=NO_DRAW, recompute=False, count=None,
             teacher_ids=None, teacher_scores=None, **options):
        if c.learns == "next token":
            mask, segments = (None if x is None else x[:, :-1] for x in (mask, segments))
            ids, labels = ids[:, :-1], labels[:, 1:]
        given = {"mask": mask} | ({} if segments is None else {"segments": segments})
        own, other = LastAttention(s.attention > 0), LastAttention(s.attention > 0)
        with own.watched():
            student, read_back = read(ids, p, c, **given, draw=draw, recompute=recompute)
        needed = s.alpha < 1 or s.hidden or s.attention
        with other.watched():
            master = read(ids, *teacher, **given, recompute=None)[0] if teacher and needed else None
        t = labels.reshape(-1)
        kept = np.flatnonzero(t != IGNORE) if on_host(t) else slice(None)
        count = max(1, int((t != IGNORE).sum())) if count is None else count

        def pick(x):
            return x.reshape(-1, x.shape[-1])[kept]

        def scores(part):
            if not needed:
                return None
            if master is None:
                return Scores(pick(teacher_scores)[part], pick(teacher_ids)[part])
            return Scores(widened(master.scores(pick(master.rows)[part])[0]))

        value, d_rows, d_table, db = in_pieces(pick(student.rows), t[kept], student, scores, s, count=count, **options)
        d_hidden = None
        if s.hidden:
            apart, distance_back = DISTANCES[s.distance](pick(student.hidden), pick(master.hidden), t[kept],
                                                         count=count)
            value, d_hidden = value + s.hidden * apart, distance_back(s.hidden)[0]
        attention_back = None
        if s.attention:
            apart, attention_back = attention_loss(own, other, labels, count=count)
            value = value + s.attention * apart

        def whole(dx):
            y = np.zeros_like(student.rows)
            y.reshape(-1, y.shape[-1])[kept] = dx
            return y

        def back(dvalue=1.0):
            if dvalue != 1 and not all(d.ndim for d in d_table.values()):
                raise ValueError(f"dvalue is {dvalue}; it must be 1 where gradients are added while they are computed")
            to_hidden = None if d_hidden is None else whole(scaled(d_hidden, dvalue))
            d_head = {name: scaled(d, dvalue) for name, d in d_table.items()}
            if attention_back:
                attention_back(s.attention * float(dvalue))
            with own.watched():
                return read_back(whole(scaled(d_rows, dvalue)), d_head, scaled(db, dvalue), to_hidden)

        return value, back

    return loss


def class_loss_of(s: Distillation) -> Callable:
    """A loss with the arguments of a classifier's loss, for State.loss.

    Batches have the teacher's scores of the classes, as teacher_scores [B C], unless alpha is 1.
    """
    def loss(ids, labels, p, c, *, teacher_scores=None, draw=NO_DRAW, recompute=False, count=None, mask=None,
             types=None, **options):
        given = {"mask": mask} | ({} if types is None else {"types": types})
        z, logits_back = c.model.logits(ids, p, c, **given, draw=draw, recompute=recompute)
        teacher = None if teacher_scores is None else Scores(teacher_scores)
        value, dz = mixed(z, labels, teacher, s, count=count, **options)
        return value, lambda dvalue=1.0: logits_back(scaled(dz, dvalue))

    return loss


def scaled(d, dvalue):
    """d dvalue, in the precision of d; None stays None."""
    return d if d is None or dvalue == 1 else rounded(widened(d) * float(dvalue), d.dtype)


def read(ids, p, c, **options):
    """A Read of ids [B T];  back(d_rows, d_table, db, d_hidden or None) gives the gradients of p.

    Raises UserError if the model predicts neither next nor masked tokens.
    """
    if c.learns == "next token":
        x, hidden_back = c.model.hidden(ids, p[c.BODY[0].removesuffix(".")], c, **options)

        def back(dx, d_table, db, d_hidden):
            return c.model.grads_of(hidden_back(dx if d_hidden is None else total(dx, d_hidden)), d_table, c)

        return Read(x, x, c.model.head(p, c), None), back
    if c.learns != "masked tokens":
        raise UserError(f"{with_article(c.TYPE)} with the head {c.head!r} predicts neither the next nor masked tokens, "
                        f"which distillation needs; choose another model")
    x, hidden_back = c.model.hidden(ids, p[c.ROOT], c, **options)
    (y, b), transform_back = c.model.transform(x, p, c)

    def back_of_masked(dy, d_table, db, d_hidden):
        dx, d_head = transform_back(dy, db)
        return encoder.masked_lm_grads(hidden_back(dx if d_hidden is None else total(dx, d_hidden)), d_head, d_table, c)

    return Read(x, y, encoder.table(p, c), b), back_of_masked


def in_pieces(x, t, student: Read, scores: Callable[[slice], Scores | None], s: Distillation, **options):
    """mixed() of the scores of x [N D], a few rows at a time: (loss, dx, d_table, db or None)."""
    at_once = max(1, PIECE // len(student.table["weight"]))
    value, dx, db = 0.0, np.zeros_like(x), None
    d_table: dict[str, Any] = {}
    for start in range(0, max(1, len(x)), at_once):
        part = slice(start, start + at_once)
        z, back = student.scores(x[part])
        piece, dz = mixed(z, t[part], scores(part), s, **options)
        dx[part], d_part, db_part = back(dz)
        value = value + piece
        d_table = {name: d_table[name] + d for name, d in d_part.items()} if d_table else d_part
        db = db_part if db is None else db + db_part
    return value, dx, d_table, db


def mixed(z, t, teacher: Scores | None, s: Distillation, *, count=None, **options):
    """α cross-entropy + (1 - α) divergence of scores z [N V] and targets t [N]: (loss, dz [N V]).

    options    label_smoothing and z_loss, of the cross-entropy
    """
    wide, parts = widened(z), []
    if s.alpha > 0:
        value, back = cross_entropy(wide, t, count=count, **options)
        parts.append((s.alpha * value, back(s.alpha)[0]))
    if s.alpha < 1 and teacher:
        value, back = divergence(wide, t, teacher, s, count=count)
        parts.append(((1 - s.alpha) * value, back(1 - s.alpha)))
    values, grads = zip(*parts, strict=True)
    return sum(values), rounded(total(*grads), z.dtype)


def divergence(z, t, teacher: Scores, s: Distillation, *, count=None):
    """The divergence of scores z [N V] and the teacher's, by s.divergence: (loss, back);  back(dloss) gives dz."""
    a, b = teacher.scores.astype(z.dtype, copy=False), z
    if teacher.ids is not None:
        (y, rest), top_back = top_scores(z, teacher.ids, temperature=s.temperature)
        b = np.concatenate([y, rest[:, None]], axis=1)
    forward = s.divergence == "forward"
    value, kl_back = kl_divergence(*((a, b) if forward else (b, a)), t, temperature=s.temperature, count=count)

    def back(dloss):
        db = kl_back(dloss)[1 if forward else 0]
        return db if teacher.ids is None else top_back((db[:, :-1], db[:, -1]))[0]

    return value, back
