"""Stacked LSTMs in one or two directions, to classify sequences or to tag their tokens.

Sources: Hochreiter & Schmidhuber, 1997; both directions, Schuster & Paliwal, 1997; backward through time, truncated or
not, Williams & Peng, 1990.  Parameters have the names and layouts of PyTorch's nn.Embedding, nn.LSTM and nn.Linear.

Padding is on the right, and the state there is zero.  In the forward direction it follows all tokens; in the reverse
direction it leaves the initial zero state unchanged.  So the amount of padding does not change any result.

Axes: B batch, T time, E embedding, D hidden size of one direction, V vocabulary, C labels.
"""
import operator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pyllama.errors import UserError
from pyllama.low import in_float32, total
from pyllama.models.config import Config, Dimensions
from pyllama.models.init import Initializer
from pyllama.models.layers import class_loss, drop, feed_forward, look_up, project, through
from pyllama.ops import linear, lstm_cell
from pyllama.rng import NO_DRAW, generator


@dataclass(frozen=True)
class LstmConfig(Config):
    """The configuration of an LSTM, under PyTorch's names where it has them.

    Raises UserError if a field is invalid.
    """

    TYPE = "lstm"
    HEADS: ClassVar = {"classification": "LSTMForSequenceClassification", "tagging": "LSTMForTokenClassification"}
    BODY = ("embedding.", "lstm.")
    DROPOUTS = ("dropout",)
    UNUSED = ("heads", "hidden")

    vocab_size: int = 10000                     # V
    embedding_dim: int = 64                     # E
    hidden_size: int = 64                       # D
    num_layers: int = 1
    bidirectional: bool = True
    dropout: float = 0.0                        # between layers and before the classifier
    num_labels: int = 2                         # C
    head: Literal["classification", "tagging"] = "classification"      # labels of sequences, or of tokens
    classifier_size: int | None = None          # None: linear; a number: linear to this width, ReLU, linear

    def __post_init__(self):
        self.check(positive=("vocab_size", "embedding_dim", "hidden_size", "num_layers", "num_labels",
                             "classifier_size"), shares=("dropout",), choices={"head": self.HEADS})

    @classmethod
    def small(cls, shape: Dimensions) -> "LstmConfig":
        """The configuration of this size, bidirectional, with one layer by default."""
        return cls(vocab_size=shape.vocab_size, embedding_dim=shape.width, hidden_size=shape.width,
                   num_layers=1 if shape.layers is None else shape.layers,
                   dropout=shape.dropout, head=shape.head)

    @property
    def directions(self) -> tuple[str, ...]:
        """The suffixes of the parameters' names, one per direction."""
        return ("", "_reverse") if self.bidirectional else ("",)


def tidy(tensors, c):
    """The state dict unchanged, because init() has PyTorch's names."""
    return tensors


def names(layer, direction):
    """The names of the four parameters of one layer and direction, in the order of scan()'s arguments."""
    return [f"{name}_l{layer}{direction}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def init(c: LstmConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Random parameters as in PyTorch: embeddings from N(0, 1), an LSTM's weights and biases uniform in ±D^-½, a linear
    layer's uniform in ±(its inputs)^-½."""
    weights = Initializer(generator(seed, "init"), 1.0, dtype)

    def uniform(inputs, *shape):
        return weights.uniform(inputs ** -0.5, *shape)

    def affine(outputs, inputs):
        return {"weight": uniform(inputs, outputs, inputs), "bias": uniform(inputs, outputs)}

    D, Y = c.hidden_size, len(c.directions) * c.hidden_size
    p = {"embedding": weights.matrix(c.vocab_size, c.embedding_dim), "lstm": {}}
    for layer in range(c.num_layers):
        shapes = (4 * D, Y if layer else c.embedding_dim), (4 * D, D), (4 * D,), (4 * D,)
        for direction in c.directions:
            p["lstm"] |= {name: uniform(D, *shape) for name, shape in zip(names(layer, direction), shapes, strict=True)}
    if (F := c.classifier_size) is None:
        return p | {"classifier": affine(c.num_labels, Y)}
    return p | {"classifier": {"0": affine(F, Y), "2": affine(c.num_labels, F)}}


def times(x, present):
    """x [B D], zero where present [B 1] is 0."""
    return in_float32(operator.mul, x, present)


def scan(x, present, w_ih, w_hh, b_ih, b_hh, reverse=False, truncate=None):
    """An LSTM in one direction: x [B T E] -> the output of each step, h [B T D];  back gives dx and the parameters'
    gradients.    present [B T 1]: 0. at padding

    Backpropagation through time: a state is used by its own step's output and by the next step, so its gradient is the
    sum of dy and the next step's gradient.  With `truncate` = n (Williams & Peng, 1990) the positions are split into
    windows of n, counted from the start of the sequence in both directions, and no gradient flows from one window to
    another: the state between them is treated as a constant.
    """
    toward = -1 if reverse else 1
    order = range(x.shape[1])[::toward]
    a, input_back = linear(x, w_ih, b_ih)                           # of all steps at once
    h = c = np.zeros_like(a, shape=(len(x), w_hh.shape[1]))
    hs, backs = [], []
    for t in order:
        a_h, state_back = linear(h, w_hh, b_hh)
        (h, c), cell_back = lstm_cell(total(a[:, t], a_h), c)
        h, c = times(h, present[:, t]), times(c, present[:, t])
        hs.append(h)
        backs.append((t, state_back, cell_back))

    def back(dy):
        dh = dc = np.zeros_like(dy[:, 0])
        das, d_hh, db_hh = [], 0.0, 0.0
        for t, state_back, cell_back in reversed(backs):
            dh = times(total(dh, dy[:, t]), present[:, t])
            da, dc = cell_back((dh, times(dc, present[:, t])))
            dh, dw, db = state_back(da)
            d_hh, db_hh = d_hh + dw, db_hh + db
            if truncate and t // truncate != (t - toward) // truncate:
                dh, dc = np.zeros_like(dh), np.zeros_like(dc)
            das.append(da)
        dx, d_ih, db_ih = input_back(np.stack(das[::-toward], axis=1))
        return dx, d_ih, d_hh, db_ih, db_hh

    return np.stack(hs[::toward], axis=1), back


def layer(number, x, present, p, c, *, draw=NO_DRAW, truncate=None):
    """One layer in all directions: x [B T E] -> y [B T D], or [B T 2*D] if bidirectional;  back gives dx, dp.

    present [B T 1]: 0. at padding.    number: index of the layer; layer 0 has no dropout on its input
    """
    x, drop_back = drop(x, c.dropout, draw.at(number) if number else NO_DRAW)
    ys, backs = [], []
    for direction in c.directions:
        leaves = names(number, direction)
        y, scan_back = scan(x, present, *(p[name] for name in leaves), direction == "_reverse", truncate)
        ys.append(y)
        backs.append((leaves, scan_back))

    def back(dy):
        dxs, dp = [], {}
        for (leaves, scan_back), d in zip(backs, np.split(dy, len(backs), axis=-1), strict=True):
            dx_scan, *d_leaves = scan_back(d)
            dxs.append(dx_scan)
            dp |= dict(zip(leaves, d_leaves, strict=True))
        return drop_back(total(*dxs)), dp

    return np.concatenate(ys, axis=-1), back


def hidden(ids, p, c, *, mask=None, draw=NO_DRAW, recompute=False, truncate=None):
    """The last layer's output, zero at padding: ids [B T] -> x [B T D], or [B T 2*D] if bidirectional;  back(dx) gives
    the gradients of p["embedding"] and p["lstm"].

    Arguments as in logits.  Raises UserError if truncate is less than 1.
    """
    if truncate is not None and truncate < 1:
        raise UserError(f"truncate is {truncate}; it must be at least 1, or None for the full gradient")
    x, embed_back = look_up(ids, p["embedding"])
    present = tokens(ids, mask)[..., None].astype(x.real.dtype)

    def run(x, number, _):
        return layer(number, x, present, p["lstm"], c, draw=draw, truncate=truncate)

    x, layers_back = through(x, range(c.num_layers), run, recompute)

    def back(dx):
        dx, d_layers, _ = layers_back(dx)
        return {"embedding": embed_back(dx), "lstm": {name: d for dp in d_layers for name, d in dp.items()}}

    return x, back


def tokens(ids, mask):
    """True at tokens, False at padding: ids, mask [B T] -> bool [B T].

    Raises UserError if T is 0, the shapes differ, or the padding is not on the right.
    """
    if not ids.shape[1]:
        raise UserError("ids have length 0; give sequences of at least one token, or padding")
    present = np.ones_like(ids, dtype=bool) if mask is None else mask != 0
    if present.shape != ids.shape:
        raise UserError(f"the mask has shape {present.shape}, but ids have {ids.shape}; give them the same shape")
    if (present[:, 1:] & ~present[:, :-1]).any():
        raise UserError("the mask has a token after padding; put the padding on the right")
    return present


def last_states(x, present, c):
    """The final state of each direction: x [B T D] -> y [B D], or [B T 2*D] -> [B 2*D];  back gives dx.

    The forward direction ends at the last token, the reverse one at the first.  A sequence without tokens has the
    initial state, which is zero, as at any padding such as position -1.
    """
    D, rows, last = c.hidden_size, np.arange(len(x), like=present), present.sum(axis=1) - 1

    def back(dy):
        dx = np.zeros_like(dy, shape=x.shape)
        dx[rows, last, :D], dx[:, 0, D:] = dy[:, :D], dy[:, D:]
        return dx

    return np.concatenate([x[rows, last, :D], x[:, 0, D:]], axis=-1), back


def classify(x, p, c):
    """One linear layer, or two with a ReLU between them: x [... D] -> z [... C];  back gives dx, dp."""
    if c.classifier_size is None:
        return project(x, p)
    z, network_back = feed_forward(x, p["0"], p["2"], "relu")

    def back(dz):
        dx, d_first, d_second = network_back(dz)
        return dx, {"0": d_first, "2": d_second}

    return z, back


def logits(ids, p, c, *, mask=None, draw=NO_DRAW, recompute=False, truncate=None):
    """Scores of the labels: ids [B T] -> z [B C] of sequences or, with head="tagging", [B T C] of tokens;  back gives
    the gradients of p.

    mask        [B T]: 1 at tokens, 0 at padding, which must be on the right (else UserError)
    draw        the random numbers of dropout (see rng.Draw); NO_DRAW: no dropout
    recompute   save memory by computing each layer's activations twice (see recompute.py)
    truncate    window, in positions, of truncated backpropagation through time (see scan); None: no truncation
    """
    x, hidden_back = hidden(ids, p, c, mask=mask, draw=draw, recompute=recompute, truncate=truncate)
    x, pool_back = (x, lambda dx: dx) if c.head == "tagging" else last_states(x, tokens(ids, mask), c)
    x, drop_back = drop(x, c.dropout, draw.at("classifier"))
    z, classify_back = classify(x, p["classifier"], c)

    def back(dz):
        dx, d_classifier = classify_back(dz)
        return hidden_back(pool_back(drop_back(dx))) | {"classifier": d_classifier}

    return z, back


def loss(ids, labels, p, c, *, mask=None, draw=NO_DRAW, recompute=False, count=None, truncate=None, **options):
    """Mean cross-entropy of the labels: ids [B T], labels [B] or, with head="tagging", [B T] -> nats, a 0-d float.

    Labels of -100 and labels at padding are ignored.  mask, draw, recompute, truncate: see logits.
    count, label_smoothing, z_loss: see ops/cross_entropy.py.  back(dvalue=1.0) gives the gradients of p.
    """
    z, logits_back = logits(ids, p, c, mask=mask, draw=draw, recompute=recompute, truncate=truncate)
    if c.head == "tagging":
        labels = np.where(tokens(ids, mask), labels, options.get("ignore_index", -100))
    value, loss_back = class_loss(z.reshape(-1, c.num_labels), labels.reshape(-1), count=count, **options)

    def back(dvalue=1.0):
        dz, _ = loss_back(dvalue)
        return logits_back(dz.reshape(z.shape))

    return value, back
