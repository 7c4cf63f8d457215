"""Heads, channels and layers taken out of a LLaMA: what leaves with them, and the configuration of the rest."""
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pyllama import params
from pyllama.errors import UserError, with_article
from pyllama.models import MODELS, llama

Masks = list[np.ndarray]                        # of each layer, bool: the parts that stay


class Kept(NamedTuple):
    """What stays of a model."""
    layers: np.ndarray                          # bool [L]
    heads: Masks                                # [G] of each of the L layers: key/value heads, with their query heads
    channels: Masks                             # [F]

    def columns(self, layer: int, c: Any) -> dict[str, np.ndarray]:
        """{output matrix: the columns that stay} of a layer; none if the layer leaves."""
        heads = np.repeat(self.heads[layer], c.num_attention_heads // c.groups * c.head_width)
        stays = self.layers[layer]
        return {"self_attn.o_proj": heads & stays, "mlp.down_proj": self.channels[layer] & stays}


def require_plain(c: Any) -> None:
    """Raise UserError if the model's layers are not those of a LLaMA, each with whole matrices of its own."""
    if c.model is not llama:
        families = [kind for kind, family in MODELS.items() if family.model is llama]
        raise UserError(f"only {', '.join(families)} can be made smaller in this way, but the model is "
                        f"{with_article(c.TYPE)}; give one of those families")
    if c.stored(c.num_hidden_layers) < c.num_hidden_layers:
        raise UserError(f"layers of this model share weights (share_layers {c.share_layers}), so that none has parts "
                        f"of its own; give a model without share_layers")
    if c.ranks_by_layer:
        raise UserError("the matrices of this model are factors already; give the model that it was made from")


def in_own_memory(p: dict) -> dict:
    """The parameters in float32, each with its own memory, by which quantization/passes.py knows them."""
    return params.rebuild(p, (np.array(leaf, np.float32) for _, leaf in params.leaves(p)))


def everything(c: Any) -> Kept:
    """All parts of a model."""
    layers = range(c.num_hidden_layers)
    return Kept(np.ones(c.num_hidden_layers, bool), [np.ones(c.groups_of(i), bool) for i in layers],
                [np.ones(c.channels_of(i), bool) for i in layers])


def without_the_rest(p: dict, c: Any, kept: Kept) -> tuple[Any, dict]:
    """(configuration, tree) of the model that has only these parts."""
    stay = np.flatnonzero(kept.layers).tolist()
    layers = [cut(p["model"]["layers"][i], kept, i, c) for i in stay]
    return configured(c, kept), p | {"model": p["model"] | {"layers": layers}}


def cut(layer: dict, kept: Kept, i: int, c: Any) -> dict:
    """A layer with only the heads and channels that stay."""
    keys, channels = np.repeat(kept.heads[i], c.head_width), kept.channels[i]
    queries = np.repeat(kept.heads[i], c.num_attention_heads // c.groups * c.head_width)
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": channels, "up_proj": channels}
    columns = {"o_proj": queries, "down_proj": channels}

    def of(name, part):
        if name in rows:
            return {kind: a[rows[name]] for kind, a in part.items()}
        if name in columns:
            return part | {"weight": np.ascontiguousarray(part["weight"][:, columns[name]])}
        return part

    branches = {branch: {name: of(name, part) for name, part in layer[branch].items()}
                for branch in ("self_attn", "mlp")}
    return layer | branches


def configured(c: Any, kept: Kept) -> Any:
    """The configuration of the parts that stay.  If all layers still have equal sizes, it is an ordinary one."""
    stay = [int(i) for i in np.flatnonzero(kept.layers)]
    G, F = ([int(masks[i].sum()) for i in stay] for masks in (kept.heads, kept.channels))
    R = c.num_attention_heads // c.groups
    changes = {"num_hidden_layers": len(stay), "num_attention_heads": R * max(G), "num_key_value_heads": max(G),
               "head_dim": c.head_width, "intermediate_size": max(F),
               "num_key_value_heads_by_layer": G if len({*G}) > 1 else None,
               "intermediate_size_by_layer": F if len({*F}) > 1 else None}
    if "layer_types" in c.names():              # whose windows depend on the number of a layer
        changes["layer_types"] = ["sliding_attention" if c.window(i) else "full_attention" for i in stay] \
            if c.use_sliding_window else None
    return replace(c, **changes)
