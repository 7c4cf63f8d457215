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
        q_norm, k_norm = (rms(attention[name], c) if c.HEAD_NORMS else None for name in ("q_norm", "k_norm"))
        steps += [
            *side_by_side("x", qkv, attention, ("q_proj", "k_proj", "v_proj"), rms(layer["input_layernorm"], c)),
            Attend(qkv, y, i, G * R, G, K, c.window(i), q_norm, k_norm, c.rope_interleaved),
            *multiplied(Product(y, "x", (), adds=True), "o_proj", attention["o_proj"]),
            *gated("x", gu, h, mlp, rms(layer["post_attention_layernorm"], c)),
            *multiplied(Product(h, "x", (), adds=True), "down_proj", mlp["down_proj"])]
    head = model["embed_tokens"] if c.tie_word_embeddings else p["lm_head"]
    steps += scores("x", rms(model["norm"], c), head)

    def rotations(places, dtype):
        return Tables(*tables(places, K // 2, c.rope_theta, 0, c.rope_scaling, dtype))

    return Plan(tuple(steps), c.vocab_size, rotations).narrowed()


def sized(name: str, size: int, usual: int) -> str:
    """The name of a buffer of a layer: one of its own for each size that is not the usual one."""
    return name if size == usual else f"{name} {size}"


def side_by_side(read: str, to: str, p: dict, names: tuple[str, ...], norm: Norm) -> list[Step]:
    """The steps to the products with these matrices: one, or some for each if one of them is two factors."""
    if not any("first" in p[name] for name in names):
        return [Product(read, to, tuple(matrix(name, p[name]) for name in names), norm)]
    sizes, steps = [outputs(p[name]) for name in names], list[Step]()
    for i, name in enumerate(names):
        steps += multiplied(Product(read, to, (), norm, into=(sum(sizes[:i]), sum(sizes))), name, p[name])
    return steps


def gated(read: str, to: str, active: str, p: dict, norm: Norm) -> list[Step]:
    """The steps to silu(gate) · up."""
    if not any("first" in p[name] for name in ("gate_proj", "up_proj")):
        both = tuple(matrix(name, p[name]) for name in ("gate_proj", "up_proj"))
        return [Product(read, to, both, norm, "swiglu", active)]
    *steps, last = side_by_side(read, to, p, ("up_proj", "gate_proj"), norm)
    return [*steps, last._replace(activation="swiglu", active=active)]      # type: ignore[call-arg]


def multiplied(product: Product, name: str, p: dict) -> list[Step]:
    """The steps of a product with this matrix: two if it is two factors, through a buffer of their rank."""
    if "first" not in p:
        return [product._replace(matrices=(matrix(name, p),))]
    first, second = (Matrix(f"{name}.{part}", p[part]["weight"], p[part].get("bias")) for part in ("first", "second"))
    rank = f"rank {first.weight.shape[0]}"
    return [Product(product.read, rank, (first,), product.norm),
            product._replace(read=rank, matrices=(second,), norm=None)]


def outputs(p: dict) -> int:
    """The rows of a matrix."""
    return int(p.get("second", p)["weight"].shape[0])


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
