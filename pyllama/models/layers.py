"""The layers that models share, each with its back.  models/llama.py spells most of them out.

A layer takes its parameters as a dict p under the names of a state dict.  Its back returns the gradients of the inputs,
then a dict of the parameters' gradients.  Axes: B batch, T and S time, D model, H heads, K = D/H, F hidden.
"""
from functools import partial

import numpy as np

from pyllama.device import on_host
from pyllama.errors import UserError
from pyllama.low import rounded, total, widened
from pyllama.models.adapters import adapted, is_special
from pyllama.models.recompute import forward_only, recomputed
from pyllama.models.sharing import in_turn
from pyllama.ops import (
    attention,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    linear,
    linear_cross_entropy,
    relu,
    swiglu,
    tanh,
)
from pyllama.params import leaves, rebuild


def silu(x):
    """x σ(x): x [... F] -> y [... F];  back gives (dx,).  It is the gate of SwiGLU with ones for values."""
    y, swiglu_back = swiglu(x, np.ones_like(x))
    return y, lambda dy: swiglu_back(dy)[:1]


ACTIVATIONS = {"relu": relu, "gelu": gelu, "gelu_python": gelu, "tanh": tanh, "silu": silu, "swish": silu,
               **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), partial(gelu, tanh=True))}


def project(x, p):
    """linear: x [... D], weight [F D], optional bias [F] -> y [... F];  back gives dx, dp.

    The weight may have an adapter, or be stored in few bits: see adapters.py.
    """
    if "first" in p:
        return project_twice(x, p)
    if is_special(p):
        return adapted(x, p)
    y, linear_back = linear(x, *p.values())

    def back(dy):
        dx, *dp = linear_back(dy)
        return dx, dict(zip(p, dp, strict=True))

    return y, back


def project_twice(x, p):
    """project by a matrix that is two factors: x [... D], first [R D], second [F R] -> y [... F];  back gives dx, dp.

    See compression/low_rank.py.
    """
    u, first_back = project(x, p["first"])
    y, second_back = project(u, p["second"])

    def back(dy):
        du, d_second = second_back(dy)
        dx, d_first = first_back(du)
        return dx, {"first": d_first, "second": d_second}

    return y, back


def layer_normalize(x, p, eps):
    """layer_norm: x [... D] -> y [... D];  back gives dx, dp."""
    y, norm_back = layer_norm(x, p["weight"], p["bias"], eps=eps)

    def back(dy):
        dx, dw, db = norm_back(dy)
        return dx, {"weight": dw, "bias": db}

    return y, back


def look_up(ids, p):
    """embedding: ids [B T] -> y [B T D];  back gives dp.

    With a projection P [D E] the rows e [B T E] of the table become y = e Pᵀ: see models/sharing.py.
    """
    y, embedding_back = embedding(ids, p["weight"])
    if "projection" not in p:
        return y, lambda dy: {"weight": embedding_back(dy)[1]}
    y, project_back = linear(y, p["projection"])

    def back(dy):
        de, d_projection = project_back(dy)
        return {"weight": embedding_back(de)[1], "projection": d_projection}

    return y, back


def toward(x, table):
    """What the rows of an output table are multiplied with: x [... D] -> x or, with a projection P [D E], x P [... E].

    The scores are x (W Pᵀ)ᵀ = (x P) Wᵀ.  back(dy, d_others) gives dx and the table's gradient, from that of what is not
    the projection, {"weight": dw}.
    """
    if "projection" not in table:
        return x, lambda dx, d_table: (dx, d_table)
    y, project_back = linear(x, table["projection"].T)

    def back(dy, d_others):
        dx, d_projection = project_back(dy)
        return dx, d_others | {"projection": d_projection.T}

    return y, back


def token_scores(x, table, b=None):
    """Scores of all tokens: x [... D], table {"weight": [V D]}, b [V] or None -> z [... V];  back gives dx, d_table,
    db."""
    y, toward_back = toward(x, table)
    others = {name: w for name, w in table.items() if name != "projection"}
    z, project_back = project(y, others if b is None else others | {"bias": b})

    def back(dz):
        dy, d_others = project_back(dz)
        db = d_others.pop("bias", None)
        return *toward_back(dy, d_others), db

    return z, back


def drop(x, rate, draw):
    """Dropout: x [B ...] -> y [B ...];  back gives dx.  With NO_DRAW or rate 0, y is x (see rng.Draw)."""
    if not draw.key or not rate:
        return x, lambda dy: dy
    y, dropout_back = dropout(x, rate=rate, key=draw.key, start=draw.row * x[0].size)
    return y, lambda dy: dropout_back(dy)[0]


def pick(x, positions):
    """y[b] = x[b, positions[b]]: x [B T D], positions [B] -> y [B D];  back gives dx."""
    rows = np.arange(len(x), like=x)

    def back(dy):
        dx = np.zeros_like(x)
        dx[rows, positions] = dy
        return dx

    return x[rows, positions], back


def last_positions(ids, mask):
    """The position [B] of each text's last token: ids, mask [B T].  Padding may be on either side."""
    if mask is None:
        return np.zeros(len(ids), int, like=ids) + ids.shape[1] - 1
    return ids.shape[1] - 1 - (mask != 0)[:, ::-1].argmax(axis=1)


def split_heads(y, H):
    """y [B T H*K] -> [B H T K]"""
    return y.reshape(*y.shape[:2], H, -1).swapaxes(1, 2)


def merge_heads(y):
    """y [B H T K] -> [B T H*K], the inverse and the transpose of split_heads."""
    B, _, T, _ = y.shape
    return y.swapaxes(1, 2).reshape(B, T, -1)


def multi_head(q, k, v, H, *, mask=None, segments=None, causal=False, cache=None):
    """Multi-head attention: q [B T H*K], k and v [B S H*K] -> y [B T H*K];  back gives dq, dk, dv.

    mask [B S]: 0 at keys to ignore.    cache: k and v continue those in it (see kv_cache.py)
    segments [B S]: numbers of packed documents, which do not see each other
    """
    k, v = split_heads(k, H), split_heads(v, H)
    if cache is not None:
        k, v = cache.extend(k, v)
    y, attention_back = attention(split_heads(q, H)[:, :, None], k, v, mask=mask, segments=segments, causal=causal)

    def back(dy):
        dq, dk, dv, *_ = attention_back(split_heads(dy, H)[:, :, None])
        return merge_heads(dq[:, :, 0]), merge_heads(dk), merge_heads(dv)

    return merge_heads(y[:, :, 0]), back


def feed_forward(x, p_in, p_out, activation, project=project):
    """y = out(activation(in(x))): x [... D] -> hidden [... F] -> y [... D];  back gives dx, d_in, d_out."""
    h, in_back = project(x, p_in)
    h, activation_back = ACTIVATIONS[activation](h)
    y, out_back = project(h, p_out)

    def back(dy):
        dh, d_out = out_back(dy)
        dx, d_in = in_back(*activation_back(dh))
        return dx, d_in, d_out

    return y, back


def residual(f, x, p, *, eps, norm_first, rate, draw):
    """A residual branch around f with layer norm p: x [B T D] -> z [B T D];  back returns dx, the norm's gradient, then
    f's.

    norm_first=True     z = x + drop(f(norm(x)))        (Xiong et al., 2020)
    norm_first=False    z = norm(x + drop(f(x)))
    """
    n, norm_back = layer_normalize(x, p, eps) if norm_first else (x, None)
    y, f_back = f(n)
    y, drop_back = drop(y, rate, draw)
    z = total(x, y)
    if not norm_first:
        z, norm_back = layer_normalize(z, p, eps)

    def back(dz):
        if not norm_first:
            dz, d_norm = norm_back(dz)
        dn, *d_f = f_back(drop_back(dz))
        if norm_first:
            dn, d_norm = norm_back(dn)
        return total(dz, dn), d_norm, *d_f

    return z, back


def through(x, layers, run, recompute=False, share=1):
    """A stack of layers: x, layer_back = run(x, layer, i), where layer_back(dx) returns dx, *others, d_layer.

    share: which of `layers` each run is, see sharing.in_turn; a gradient is the sum over the runs, which i counts.
    back(dx) returns dx, [d_layer of each of layers], [others of all runs, the last one's first].
    recompute: see recompute.py; None: there is no backward pass
    """
    run = forward_only(run) if recompute is None else recomputed(run) if recompute else run
    order = in_turn(range(len(layers)), share)
    layer_backs = []
    for i, place in enumerate(order):
        x, layer_back = run(x, layers[place], i)
        layer_backs.append(layer_back)

    def back(dx):
        d_layers, others = {}, []
        for place, layer_back in zip(reversed(order), reversed(layer_backs), strict=True):
            dx, *other, d_layer = layer_back(dx)
            d_layers[place] = summed(d_layers[place], d_layer) if place in d_layers else d_layer
            others += other
        return dx, [d_layers[place] for place in range(len(layers))], others

    return x, back


def summed(grads, others):
    """The sum of two gradients of one layer or table: trees of the same form, whose leaves come in the same order."""
    return rebuild(grads, (a + b for (_, a), (_, b) in zip(leaves(grads), leaves(others), strict=True)))


def with_head(grads, d_table, d_head, tied):
    """grads with the gradient d_head of the output table: under lm_head or, if it is tied to the token embeddings,
    added to d_table, because a tied table is used twice and its gradients add."""
    if not tied:
        return grads | {"lm_head": d_head}
    d_table |= summed(d_table, d_head)
    return grads


def class_loss(z, labels, weights=None, count=None, ignore_index=-100, **options):
    """cross_entropy of scores z [N C] and labels [N] -> nats, a 0-d float;  back gives dz, None.

    weights [N]: the loss is Σ w_n l_n / Σ w_n, or Σ w_n l_n / count.  It is linear in the rows, so rows of equal weight
    are computed together.  Labels of a floating-point dtype are numbers to estimate: see squared_error().
    """
    if labels.dtype.kind == "f":
        return squared_error(z, labels, count, weights=weights, **options)
    if weights is None:
        return cross_entropy(z, labels, count=count, ignore_index=ignore_index, **options)
    count = weights[labels != ignore_index].sum() if count is None else count
    parts = [(w / count, *cross_entropy(z, np.where(weights == w, labels, ignore_index), count=1,
                                        ignore_index=ignore_index, **options)) for w in np.unique(weights) if w > 0]

    def back(dvalue=1.0):
        if not parts:                                   # no row has a weight
            return np.zeros_like(z), None
        return total(*(part_back(dvalue * share)[0] for share, _, part_back in parts)), None

    return sum((share * value for share, value, _ in parts), 0.0), back


def squared_error(z, labels, count=None, *, weights=None, label_smoothing=0.0, z_loss=0.0):
    """Σ (z_n - label_n)² / count of scores z [N 1] and labels [N] -> 0-d float;  back gives dz, None.

    count    None: N

    Raises UserError if a score is not a single number, or for the options of cross-entropy.
    """
    if z.shape[1:] != (1,) or weights is not None or label_smoothing or z_loss:
        raise UserError("numbers are estimated by a single score, without weights, label_smoothing and z_loss; set "
                        "num_labels to 1 and remove these")
    scores = widened(z)
    difference = scores - labels.astype(scores.dtype)[:, None]
    count = len(z) if count is None else count

    def back(dvalue=1.0):
        return rounded(difference * (2 * dvalue / count), z.dtype), None

    return (difference ** 2).sum() / count, back


def prediction_loss(x, table, b, labels, *, count=None, ignore_index=-100, **options):
    """Mean cross-entropy of token_scores(x, table, b) and labels: x [... D], table {"weight": [V D]}, b [V] or None,
    labels [...] -> nats, a 0-d float;  back(dvalue=1.0) gives dx, d_table, db.

    Rows with an ignored label are not scored, which saves most of the work in masked language modeling.  On a GPU all
    rows are scored, because counting them would make the host wait.
    count, label_smoothing, z_loss: see ops/cross_entropy.py
    """
    rows, t, w = x.reshape(-1, x.shape[-1]), labels.reshape(-1), table["weight"]
    kept = np.flatnonzero(t != ignore_index) if on_host(t) else slice(None)
    y, toward_back = toward(rows[kept], table)
    if b is None:
        value, loss_back = linear_cross_entropy(y, w, t[kept], count=count, ignore_index=ignore_index, **options)
    else:
        z, linear_back = linear(y, w, b)
        value, z_back = cross_entropy(z, t[kept], count=count, ignore_index=ignore_index, **options)

    def back(dvalue=1.0):
        dy, dw, db = (*loss_back(dvalue)[:2], None) if b is None else linear_back(z_back(dvalue)[0])
        dx = np.zeros_like(rows)
        dx[kept], d_table = toward_back(dy, {"weight": dw})
        return dx.reshape(x.shape), d_table, db

    return value, back
