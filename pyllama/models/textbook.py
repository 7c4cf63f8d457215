"""A Transformer block as in textbook diagrams: embedding, one attention head, ReLU feed-forward, output.

    x = embedding[ids] (+ position[t])
    y = (x +) attention((norm) x)                   causal; q, k, v are linear maps of its input
    z = (y +) feed_forward((norm) y)
    scores = z wᵀ + b

The parts in brackets are missing in the diagrams, but a language model needs them.  Each can be switched on by itself;
`python -m bench.textbook` measures the effect.

Axes: B batch, T time, D model, F hidden, V vocabulary.
"""
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.low import total
from pyllama.models.config import Config
from pyllama.models.init import Initializer
from pyllama.models.layers import feed_forward, layer_normalize, look_up, multi_head, prediction_loss, project
from pyllama.rng import NO_DRAW, generator


@dataclass(frozen=True)
class TextbookConfig(Config):
    """The configuration of the block, and the parts that the diagrams omit."""

    TYPE = "textbook"

    vocab_size: int = 65                        # V
    hidden_size: int = 128                      # D
    intermediate_size: int = 512                # F
    max_position_embeddings: int = 128
    residual: bool = False                      # add the input of each part to its output
    norm: bool = False                          # a layer norm before each part
    positions: bool = False                     # learned position embeddings

    def __post_init__(self):
        self.check(positive=("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"))


def init(c: TextbookConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, 1/inputs), embeddings from N(0, 1); norms one, biases zero."""
    weights = Initializer(generator(seed, "init"), lambda outputs, inputs: inputs ** -0.5, dtype)
    D, F = c.hidden_size, c.intermediate_size
    p = {"embedding": weights.matrix(c.vocab_size, D, 1.0)}
    if c.positions:
        p["places"] = weights.matrix(c.max_position_embeddings, D, 1.0)
    p["attention"] = {name: weights.matrix(D, D) for name in ("q", "k", "v")}
    p["feed_forward"] = {"in": weights.affine(F, D), "out": weights.affine(D, F)}
    if c.norm:
        p |= {"norm_attention": weights.norm(D), "norm_feed_forward": weights.norm(D)}
    return p | {"output": weights.affine(c.vocab_size, D)}


def attend(x, p):
    """Causal attention with one head: x [B T D] -> y [B T D];  back gives dx, dp."""
    q, q_back = project(x, p["q"])
    k, k_back = project(x, p["k"])
    v, v_back = project(x, p["v"])
    y, heads_back = multi_head(q, k, v, 1, causal=True)

    def back(dy):
        dq, dk, dv = heads_back(dy)
        (dx_q, d_q), (dx_k, d_k), (dx_v, d_v) = q_back(dq), k_back(dk), v_back(dv)
        return total(dx_q, dx_k, dx_v), {"q": d_q, "k": d_k, "v": d_v}

    return y, back


def part(f, x, p, name, c):
    """f with the norm and the residual sum of c: x [B T D] -> y [B T D];  back gives dx, {name: df, ...}."""
    n, norm_back = layer_normalize(x, p[f"norm_{name}"], 1e-5) if c.norm else (x, None)
    y, f_back = f(n, p[name])

    def back(dy):
        dx, df = f_back(dy)
        grads = {name: df}
        if c.norm:
            dx, grads[f"norm_{name}"] = norm_back(dx)
        return total(dx, dy) if c.residual else dx, grads

    return total(x, y) if c.residual else y, back


def relu_network(x, p):
    """Feed-forward: x [B T D] -> hidden [B T F] -> y [B T D];  back gives dx, dp."""
    y, network_back = feed_forward(x, p["in"], p["out"], "relu")

    def back(dy):
        dx, d_in, d_out = network_back(dy)
        return dx, {"in": d_in, "out": d_out}

    return y, back


def hidden(ids, p, c):
    """The block's output: ids [B T] -> z [B T D];  back gives the gradients of all parameters but p["output"]."""
    B, T = ids.shape
    position_back = None
    x, token_back = look_up(ids, p["embedding"])
    if c.positions:
        if c.max_position_embeddings < T:
            raise UserError(f"the text has {T} tokens, but the model has only {c.max_position_embeddings} positions "
                            f"(max_position_embeddings); shorten the text")
        positions, position_back = look_up(np.broadcast_to(np.arange(T, like=ids), (B, T)), p["places"])
        x = total(x, positions)
    y, attention_back = part(attend, x, p, "attention", c)
    z, network_back = part(relu_network, y, p, "feed_forward", c)

    def back(dz):
        dy, d_network = network_back(dz)
        dx, d_attention = attention_back(dy)
        d_positions = {"places": position_back(dx)} if position_back else {}
        return {"embedding": token_back(dx), **d_positions, **d_attention, **d_network}

    return z, back


def logits(ids, p, c, *, draw=NO_DRAW, recompute=False):
    """Scores of the next token: ids [B T] -> y [B T V];  back gives the gradients of p.

    draw and recompute have no effect, because there is no dropout and only one block.
    """
    z, hidden_back = hidden(ids, p, c)
    y, output_back = project(z, p["output"])

    def back(dy):
        dz, d_output = output_back(dy)
        return hidden_back(dz) | {"output": d_output}

    return y, back


def loss(ids, labels, p, c, *, draw=NO_DRAW, recompute=False, count=None, **options):
    """Mean cross-entropy of predicting labels[:, 1:] from ids[:, :-1]: ids, labels [B T+1] -> nats, a 0-d float.

    Arguments and back as in llama.loss.
    """
    z, hidden_back = hidden(ids[:, :-1], p, c)
    value, loss_back = prediction_loss(z, p["output"], p["output"]["bias"], labels[:, 1:], count=count, **options)

    def back(dvalue=1.0):
        dz, d_output, db = loss_back(dvalue)
        return hidden_back(dz) | {"output": d_output | {"bias": db}}

    return value, back
