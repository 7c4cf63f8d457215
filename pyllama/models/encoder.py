"""The parts that bidirectional encoders share: embeddings, scores and losses of the heads.  See models/bert.py.

A family's configuration has ROOT, the name under which the parameters of its body are, and position_ids(ids).  Its
module has, with the keywords of logits():

    hidden(ids, p, c)       the last layer's output x [B T D], where p is the tree below ROOT
    transform(x, p, c)      of the masked_lm head: (its input [B T D], the bias [V]); back(dy, db) gives dx, d_head
    score(x, p, c)          of the other heads: scores z; back gives dx, d_head and other gradients below ROOT

Axes: B batch, T time, D model, V vocabulary, C classes.
"""
import numpy as np

from pyllama.errors import UserError, with_article
from pyllama.low import total
from pyllama.models.layers import (
    ACTIVATIONS,
    class_loss,
    drop,
    layer_normalize,
    look_up,
    pick,
    prediction_loss,
    project,
    token_scores,
    with_head,
)
from pyllama.rng import NO_DRAW


def embed(ids, p, c, *, types=None, draw=NO_DRAW):
    """norm(token + position + type): ids [B T] -> x [B T D];  back gives dp.    types [B T]; None: all 0

    A family may have no types.  Raises UserError if T is more than the model's context.
    """
    T = ids.shape[1]
    if c.context < T:
        raise UserError(f"the text has {T} tokens, but the model has only {c.context} positions "
                        f"(max_position_embeddings); shorten the text")
    rows = {"word_embeddings": ids, "position_embeddings": c.position_ids(ids)}
    if "token_type_embeddings" in p:
        rows["token_type_embeddings"] = np.zeros_like(ids) if types is None else types
    vectors, backs = zip(*(look_up(rows[name], p[name]) for name in rows), strict=True)
    x, norm_back = layer_normalize(total(*vectors), p["LayerNorm"], c.layer_norm_eps)
    x, drop_back = drop(x, c.hidden_dropout_prob, draw.at("embedding"))

    def back(dx):
        dx, d_norm = norm_back(drop_back(dx))
        return {name: table_back(dx) for name, table_back in zip(rows, backs, strict=True)} | {"LayerNorm": d_norm}

    return x, back


def first(x):
    """The first token's vector: x [B T D] -> y [B D];  back gives dx."""
    return pick(x, np.zeros(len(x), int, like=x))


def transform_of(x, dense, norm, activation, eps):
    """norm(activation(dense(x))): x [B T D] -> y [B T D];  back gives dx, d_dense, d_norm."""
    y, dense_back = project(x, dense)
    y, activation_back = ACTIVATIONS[activation](y)
    y, norm_back = layer_normalize(y, norm, eps)

    def back(dy):
        dy, d_norm = norm_back(dy)
        dx, d_dense = dense_back(*activation_back(dy))
        return dx, d_dense, d_norm

    return y, back


def table(p, c):
    """The token embeddings {"weight": [V D]}, which are the output table of the masked_lm head too."""
    return p[c.ROOT]["embeddings"]["word_embeddings"]


def logits(ids, p, c, *, mask=None, types=None, draw=NO_DRAW, recompute=False):
    """The head's scores: ids [B T] -> z of masked tokens [B T V], of texts [B C], of tokens [B T C], or of spans' first
    and last tokens [B T 2];  back gives the gradients of p.

    Arguments as in hidden().  In a span, padding has the score -∞.  Raises UserError without a head.
    """
    require_head(c)
    x, hidden_back = c.model.hidden(ids, p[c.ROOT], c, mask=mask, types=types, draw=draw, recompute=recompute)
    if c.head == "masked_lm":
        (x, b), transform_back = c.model.transform(x, p, c)
        z, table_back = token_scores(x, table(p, c), b)

        def back(dz):
            dx, d_table, db = table_back(dz)
            dx, d_head = transform_back(dx, db)
            return masked_lm_grads(hidden_back(dx), d_head, d_table, c)
    else:
        z, score_back = c.model.score(x, p, c, draw=draw)
        if c.head == "span" and mask is not None:
            z = np.where(mask[..., None] != 0, z, z.dtype.type(-np.inf))

        def back(dz):
            dx, d_head, d_others = score_back(dz)
            return {c.ROOT: hidden_back(dx) | d_others, **d_head}

    return z, back


def require_head(c):
    """Raise UserError if the model has no head."""
    if c.head == "none":
        others = [head for head in c.HEADS if head != "none"]
        raise UserError(f"{with_article(c.TYPE)} without a head has no scores and no loss; choose a head: "
                        f"{', '.join(others)}")


def masked_lm_grads(d_body, d_head, d_table, c):
    """The gradient tree of a masked language model, given that of the tied embeddings as the output table."""
    return with_head({c.ROOT: d_body, **d_head}, d_body["embeddings"]["word_embeddings"], d_table, tied=True)


def loss(ids, labels, p, c, *, mask=None, types=None, draw=NO_DRAW, recompute=False, count=None, **options):
    """Mean cross-entropy of the labels (see the table in models/bert.py): ids [B T] -> nats, a 0-d float.

    Arguments as in hidden().  count, label_smoothing, z_loss: see ops/cross_entropy.py.
    back(dvalue=1.0) gives the gradients of p.  Raises UserError without a head, or for label_smoothing of a span.
    """
    require_head(c)
    if c.head == "masked_lm":
        x, hidden_back = c.model.hidden(ids, p[c.ROOT], c, mask=mask, types=types, draw=draw, recompute=recompute)
        (x, b), transform_back = c.model.transform(x, p, c)
        value, loss_back = prediction_loss(x, table(p, c), b, labels, count=count, **options)

        def back(dvalue=1.0):
            dx, d_table, db = loss_back(dvalue)
            dx, d_head = transform_back(dx, db)
            return masked_lm_grads(hidden_back(dx), d_head, d_table, c)

        return value, back
    z, logits_back = logits(ids, p, c, mask=mask, types=types, draw=draw, recompute=recompute)
    if c.head == "span":
        if options.get("label_smoothing"):
            raise UserError("label_smoothing would give padding a share of a span's probability; set it to 0")
        z = z.swapaxes(1, 2)
    value, loss_back = class_loss(z.reshape(-1, z.shape[-1]), labels.reshape(-1), count=count, **options)

    def back(dvalue=1.0):
        dz = loss_back(dvalue)[0].reshape(z.shape)
        return logits_back(dz.swapaxes(1, 2) if c.head == "span" else dz)

    return value, back
