"""The plan of LLaMA and of the families that compute it with other options: see models/llama.py."""
from typing import Any

from pyllama.decode.plan import Attend, Embed, Matrix, Norm, Plan, Product, Step, Tables, scores
from pyllama.models.sharing import in_turn
from pyllama.rotary import tables


def plan(c: Any, p: dict) -> Plan:
    """The plan of a LLaMA that continues text."""
    R, K, model = c.num_attention_heads // c.groups, c.head_width, p["model"]
    steps = embedded(model["embed_tokens"])
    for i, layer in enumerate(in_turn(model["layers"], c.share_layers)):
        attention, mlp = layer["self_attn"], layer["mlp"]
        G, F = c.groups_of(i), c.channels_of(i)
        qkv, y = (sized(name, G, c.groups) for name in ("qkv", "y"))
        gu, h = (sized(name, F, c.intermediate_size) for name in ("gu", "h"))
        q, k, v, o = (matrix(name, attention[name]) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        gate, up, down = (matrix(name, mlp[name]) for name in ("gate_proj", "up_proj", "down_proj"))
        q_norm, k_norm = (rms(attention[name], c) if c.HEAD_NORMS else None for name in ("q_norm", "k_norm"))
        steps += [
            Product("x", qkv, (q, k, v), rms(layer["input_layernorm"], c)),
            Attend(qkv, y, i, G * R, G, K, c.window(i), q_norm, k_norm, c.rope_interleaved),
            Product(y, "x", (o,), adds=True),
            Product("x", gu, (gate, up), rms(layer["post_attention_layernorm"], c), "swiglu", h),
            Product(h, "x", (down,), adds=True)]
    head = model["embed_tokens"] if c.tie_word_embeddings else p["lm_head"]
    steps += scores("x", rms(model["norm"], c), head)

    def rotations(places, dtype):
        return Tables(*tables(places, K // 2, c.rope_theta, 0, c.rope_scaling, dtype))

    return Plan(tuple(steps), c.vocab_size, rotations).narrowed()


def sized(name: str, size: int, usual: int) -> str:
    """The name of a buffer of a layer: one of its own for each size that is not the usual one."""
    return name if size == usual else f"{name} {size}"


def embedded(table: dict) -> list[Step]:
    """The steps to the embeddings: see models.layers.look_up."""
    rows = Matrix("embed_tokens", table["weight"])
    if "projection" not in table:
        return [Embed("x", rows)]
    return [Embed("e", rows), Product("e", "x", (Matrix("projection", table["projection"]),))]


def matrix(name: str, p: dict) -> Matrix:
    """The matrix of a projection, and its bias if it has one."""
    return Matrix(name, p["weight"], p.get("bias"))


def rms(p: dict, c: Any) -> Norm:
    """An RMSNorm."""
    return Norm("rms", p["weight"], None, c.rms_norm_eps)
