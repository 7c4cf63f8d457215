"""The plan of a Transformer's decoder, and of those of BART and mBART: see models/transformer.py."""
import math
from typing import Any

from pyllama.decode.plan import (
    ACTIVATIONS,
    Attend,
    Cross,
    Embed,
    Matrix,
    Norm,
    Normalize,
    Plan,
    Product,
    Step,
    Tables,
    scores,
)
from pyllama.models import transformer
from pyllama.models.sharing import in_turn, whole
from pyllama.quantization import decoded_tree


class Residual:
    """The steps of branches around a residual, which is `x`, or after a norm of it `z`, and then `x` again."""

    def __init__(self, c: Any):
        self.c, self.x = c, "x"
        self.steps: list[Step] = []

    def normalize(self, p: dict) -> None:
        """Replace the residual by its norm."""
        self.steps.append(Normalize(self.x, "z" if self.x == "x" else "x", norm(p, self.c)))
        self.x = self.steps[-1].to

    def branch(self, p: dict, first: Product, between: list[Step], last: Product) -> None:
        """Add the branch whose first product reads the residual, and whose last adds to it, with the layer norm p."""
        before = norm(p, self.c) if self.c.norm_first else None
        self.steps += [first._replace(read=self.x, norm=before), *between, last._replace(to=self.x, adds=True)]
        if not self.c.norm_first:
            self.normalize(p)


def plan(c: Any, p: dict) -> Plan:
    """The plan of the decoder of an encoder-decoder."""
    H, K = c.decoder_attention_heads, c.d_model // c.decoder_attention_heads
    decoder, activation = p["model"]["decoder"], ACTIVATIONS[c.activation_function]
    table = Matrix("embed_tokens", whole(transformer.table_of(p["model"], "decoder", c)))      # as in gpt2.py
    stream = Residual(c)
    stream.steps.append(Embed("x", table, math.sqrt(c.d_model) if c.scale_embedding else 1.0))
    if c.normalize_embedding:
        stream.normalize(decoder["layernorm_embedding"])
    layers = in_turn(decoder["layers"], c.share_layers)
    for i, layer in enumerate(layers):
        q, k, v, out = matrices(layer["self_attn"])
        stream.branch(layer["self_attn_layer_norm"], Product("", "qkv", (q, k, v)),
                      [Attend("qkv", "y", i, H, H, K)], Product("y", "", (out,)))
        q, _, _, out = matrices(layer["encoder_attn"])
        stream.branch(layer["encoder_attn_layer_norm"], Product("", "q", (q,)),
                      [Cross("q", "y", i, H, K)], Product("y", "", (out,)))
        up, down = (Matrix(name, **layer[name]) for name in ("fc1", "fc2"))
        stream.branch(layer["final_layer_norm"], Product("", "f", (up,), activation=activation, active="h"),
                      [], Product("h", "", (down,)))
    last = norm(decoder["layer_norm"], c) if c.norm_first else None
    bias = {"final_logits_bias": decoded_tree(p["final_logits_bias"])} if c.final_bias else {}      # a row [1 V]
    stream.steps += scores(stream.x, last, *transformer.head(p | bias, c))

    def positions(places, dtype):
        if c.positions == "sinusoidal":
            return Tables(positions=transformer.sinusoids(0, places, c.d_model).astype(dtype))
        return Tables(positions=decoded_tree(decoder["embed_positions"]["weight"], dtype)[c.position_offset:])

    limit = (c.max_position_embeddings, "max_position_embeddings") if c.positions == "learned" else None
    cross = tuple(layer["encoder_attn"] for layer in layers)
    return Plan(tuple(stream.steps), c.vocab_size, positions, limit, cross).narrowed()


def matrices(p: dict) -> list[Matrix]:
    """The projections of queries, keys, values and outputs."""
    return [Matrix(part, **p[part]) for part in ("q_proj", "k_proj", "v_proj", "out_proj")]


def norm(p: dict, c: Any) -> Norm:
    """A layer norm."""
    return Norm("layer", p["weight"], p["bias"], c.layer_norm_eps)
