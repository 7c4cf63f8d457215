"""The plan of GPT-2: see models/gpt2.py."""
from typing import Any

from pyllama.decode.plan import ACTIVATIONS, Attend, Embed, Matrix, Norm, Plan, Product, Step, Tables, scores
from pyllama.models.sharing import in_turn, whole
from pyllama.quantization import decoded_tree


def plan(c: Any, p: dict) -> Plan:
    """The plan of a GPT-2."""
    H, K, body = c.n_head, c.head_width, p["transformer"]
    activation = ACTIVATIONS[c.activation_function]
    # A factorized table is multiplied out, because positions are added to the rows that are looked up.
    steps: list[Step] = [Embed("x", Matrix("wte", whole(body["wte"])))]
    for i, layer in enumerate(in_turn(body["h"], c.share_layers)):
        qkv, out = (turned(name, layer["attn"][name]) for name in ("c_attn", "c_proj"))
        up, down = (turned(name, layer["mlp"][name]) for name in ("c_fc", "c_proj"))
        steps += [
            Product("x", "qkv", (qkv,), norm(layer["ln_1"], c)),
            Attend("qkv", "y", i, H, H, K),
            Product("y", "x", (out,), adds=True),
            Product("x", "f", (up,), norm(layer["ln_2"], c), activation, "h"),
            Product("h", "x", (down,), adds=True)]
    head = body["wte"] if c.tie_word_embeddings else p["lm_head"]
    steps += scores("x", norm(body["ln_f"], c), head)

    def positions(places, dtype):
        return Tables(positions=decoded_tree(body["wpe"]["weight"], dtype))

    return Plan(tuple(steps), c.vocab_size, positions, (c.n_positions, "n_positions")).narrowed()


def turned(name: str, p: dict) -> Matrix:
    """A matrix that is stored as (inputs, outputs)."""
    return Matrix(name, p["weight"].T, p["bias"])


def norm(p: dict, c: Any) -> Norm:
    """A layer norm."""
    return Norm("layer", p["weight"], p["bias"], c.layer_norm_epsilon)
