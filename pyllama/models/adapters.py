"""Adapters: small matrices beside frozen ones, which alone are trained (LoRA, DoRA), forward and backward.

    LoRA    y = x W'ᵀ + b             W' = W + s B A                            (Hu et al., 2021, equation 3)
    DoRA    y = c ∘ (x W'ᵀ) + b       c_f = m_f / n_f,  n_f = ‖W'_f‖            (Liu et al., 2024, equation 5)

An adapted matrix is a dict with PEFT's names:

    weight [F D], bias [F]            of the base model, frozen; the weight may be stored in few bits
    lora_A.weight [R D], lora_B.weight [F R], lora_scale []             A, B and s, of which s is a constant
    lora_magnitude_vector [F]         m of DoRA
    lora_detached []                  if it is there, n is a constant of the backward pass, as in PEFT

W' is never there as a whole: x W'ᵀ = x Wᵀ + (s x Aᵀ) Bᵀ, and n has an op of its own, which runs on panels of rows (see
ops/adapted_norm.py).  With z = x W'ᵀ:

    dz_nf = dy_nf c_f       dc_f = Σ_n dy_nf z_nf       dm_f = dc_f / n_f       dn_f = - dc_f c_f / n_f

The last gradient goes on to A and B through n.  PEFT leaves it out (section 4.3 of the paper), which saves a product
with W and gives another direction: its A and B do not see that a longer row is divided by its length.

A matrix that is stored as (inputs, outputs), such as GPT-2's, has A, B and m of its transpose.

Axes: D inputs, F outputs, R rank.
"""
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyllama import params
from pyllama.errors import UserError
from pyllama.low import in_float32, total, widened
from pyllama.ops import linear
from pyllama.ops.adapted_norm import adapted_norm
from pyllama.rng import generator
from pyllama.shapes import is_bfloat16

ALL = "all-linear"                                  # PEFT's name of all matrices
PANEL = 2**20                                       # numbers of a matrix that are widened at once
CONSTANT = np.float64(0)                            # the gradient of what is not trained
LORA, DORA = ("lora_A", "lora_B", "lora_scale"), "lora_magnitude_vector"
DETACHED = "lora_detached"
OWN = (*LORA, DORA, DETACHED)                       # the keys that an adapter adds to a matrix


@dataclass(frozen=True)
class Lora:
    """Which matrices have adapters, and how they are scaled.

    targets     the last parts of the matrices' names, such as q_proj, or all-linear
    rank        R
    alpha       s = alpha / R, or with rslora alpha / √R (Kalajdzievski, 2023)
    dora        "": LoRA; "exact": DoRA; "detached": DoRA with the norm as a constant of the backward pass
    saved       modules besides, such as a new head, which are trained whole

    Raises UserError if a value is out of range.
    """
    targets: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    dora: str = ""
    saved: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < np.inf:
            raise UserError(f"lora_alpha is {self.alpha}; it must be positive")

    @property
    def scale(self) -> float:
        """s"""
        return self.alpha / (self.rank ** 0.5 if self.rslora else self.rank)


@dataclass(frozen=True)
class Adapter:
    """An adapter: its settings, and its arrays {name: array} under the names of the tree that it is attached to."""
    lora: Lora
    tensors: dict[str, np.ndarray] = field(repr=False)
    base: str = ""                                  # where its base model is
    fingerprint: str = ""                           # of the base's weights: see fingerprint()
    base_dtype: str | None = None                   # how the base's matrices were stored beside it: see Adapting


# --- one matrix -------------------------------------------------------------------------------------------------------

def is_special(p: dict) -> bool:
    """Is this matrix adapted, or stored in few bits?"""
    return "lora_A" in p or hasattr(p["weight"], "panels")


def adapted(x, p, turned=False):
    """y = c ∘ (x W'ᵀ) + b: x [... D] -> y [... F];  back gives dx, dp.    turned: the weight is stored as [D F]"""
    w = p["weight"].T if turned else p["weight"]
    z, base_back = multiplied(x, w)
    z, update_back = updated(x, z, p) if "lora_A" in p else (z, lambda dz: (None, {}))
    z, resize_back = resized(z, w, p) if DORA in p else (z, lambda dz: (dz, {}))
    y = in_float32(lambda z, b: z + b, z, p["bias"]) if "bias" in p else z

    def back(dy):
        db = {"bias": widened(dy).reshape(-1, dy.shape[-1]).sum(axis=0)} if "bias" in p else {}
        dz, d_resize = resize_back(dy)
        dx, dw = base_back(dz)
        dx_update, d_update = update_back(dz)
        dw = dw + d_resize.pop("weight", 0)
        dp = {"weight": dw.T if turned else dw, **db, **joined(d_update, d_resize)}
        return dx if dx_update is None else total(dx, dx_update), {name: dp[name] for name in p}

    return y, back


def updated(x, z, p):
    """z + (s x Aᵀ) Bᵀ: x [... D], z [... F] -> [... F];  back(dz) gives its part of dx, and dp."""
    u, a_back = linear(x, p["lora_A"]["weight"])
    v, b_back = linear(scaled(u, p["lora_scale"]), p["lora_B"]["weight"])

    def back(dz):
        du, d_b = b_back(dz)
        dx, d_a = a_back(scaled(du, p["lora_scale"]))
        return dx, {"lora_A": {"weight": d_a}, "lora_B": {"weight": d_b}, "lora_scale": CONSTANT}

    return total(z, v), back


def resized(z, w, p):
    """c ∘ z: z [... F], w [F D] -> [... F];  back gives dz, and dp with w's gradient as its weight."""
    n, norm_back = norms(w, p)
    m = p[DORA]
    c = m / n

    def back(dy):
        dc = (widened(dy) * widened(z)).reshape(-1, len(n)).sum(axis=0)
        d_norm = {DETACHED: CONSTANT} if DETACHED in p else norm_back(- dc * c / n)
        return in_float32(np.multiply, dy, c), {DORA: dc / n, **d_norm}

    return in_float32(np.multiply, z, c), back


def norms(w, p):
    """n_f = ‖W'_f‖: w [F D] -> n [F], float32 in bfloat16;  back gives the gradients of p, with w's as its weight."""
    a, s = widened(p["lora_A"]["weight"]), p["lora_scale"]
    b = widened(p["lora_B"]["weight"]) * s
    parts = [(rows, *adapted_norm(panel, a, b[rows])) for rows, panel in panels(w, a.dtype)]

    def back(dn):
        dws, das, dbs = zip(*[norm_back(dn[rows]) for rows, _, norm_back in parts], strict=True)
        dw = dws[0] if len(dws) == 1 else CONSTANT              # a matrix in several panels is frozen
        return {"weight": dw, "lora_A": {"weight": sum(das)}, "lora_B": {"weight": np.concatenate(dbs) * s}}

    return np.concatenate([n for _, n, _ in parts]), back


def multiplied(x, w):
    """x wᵀ: x [... D], w [F D] -> [... F];  back gives dx, dw.  A frozen w of few bits is decoded in panels, twice."""
    if not hasattr(w, "panels"):
        return linear(x, w)
    y = np.concatenate([linear(x, panel)[0] for _, panel in panels(w, x.dtype)], axis=-1)

    def back(dy):
        return total(*(linear(dy[..., rows], panel.T)[0] for rows, panel in panels(w, x.dtype))), CONSTANT

    return y, back


def panels(w, dtype) -> Iterator[tuple[slice, Any]]:
    """(rows, w[rows]) of a matrix [F D], which together are all of it; more than one if it has another precision."""
    if hasattr(w, "panels"):
        yield from w.panels(dtype)
    elif is_bfloat16(w.dtype):
        step = max(1, PANEL // w.shape[1])
        yield from ((slice(i, i + step), widened(w[i:i + step])) for i in range(0, len(w), step))
    else:
        yield slice(0, len(w)), w


def scaled(u, s):
    """s u, in the precision of u."""
    return in_float32(np.multiply, u, s)


def joined(*grads):
    """The sum of gradients of p, of which some may lack some names."""
    sums: dict[str, Any] = {}
    for name, dp in ((name, dp) for tree in grads for name, dp in tree.items()):
        if name not in sums:
            sums[name] = dp
        elif isinstance(dp, dict):
            sums[name] = joined(sums[name], dp)
        else:
            sums[name] = sums[name] + dp
    return sums


# --- merging ----------------------------------------------------------------------------------------------------------

def merge(p, turned=False):
    """(the weight that computes the same without an adapter, n of DoRA or None); the bias stays as it is."""
    w = p["weight"]
    w = w.decoded(p["lora_A"]["weight"].dtype) if hasattr(w, "decoded") else w
    w = (w.T if turned else w) + update(p)
    if DORA not in p:
        return (w.T if turned else w), None
    n = np.maximum(np.linalg.norm(w, axis=1), 1e-12)            # the ε of adapted_norm, which a row of zeros needs
    w *= (p[DORA] / n)[:, None]
    return (w.T if turned else w), n


def unmerge(weight, n, p, turned=False):
    """The base's weight, of what merge() returned."""
    w = weight.T if turned else weight
    w = (w if n is None else w * (n / p[DORA])[:, None]) - update(p)
    return w.T if turned else w


def update(p):
    """s B A [F D]"""
    return p["lora_B"]["weight"] @ p["lora_A"]["weight"] * p["lora_scale"]


def merged(tree, config, path=""):
    """The tree of a model's parameters with its adapters merged; all other arrays are shared with it."""
    if isinstance(tree, list):
        return [merged(branch, config, f"{path}.{i}") for i, branch in enumerate(tree)]
    if not isinstance(tree, dict):
        return tree
    if "lora_A" not in tree:
        return {name: merged(branch, config, f"{path}.{name}") for name, branch in tree.items()}
    weight, _ = merge(tree, f"{path}.weight".endswith(config.TRANSPOSED))
    return {"weight": weight} | {name: tree[name] for name in tree.keys() - {"weight", *OWN}}


# --- trees ------------------------------------------------------------------------------------------------------------

def matrices(tree, config) -> dict[str, tuple[int, int]]:
    """{dotted name: (F, D)} of the matrices that may have an adapter: those of the model's layers."""
    return {name.removesuffix(".weight"): leaf.shape[::-1] if name.endswith(config.TRANSPOSED) else leaf.shape
            for name, leaf in params.leaves(tree) if is_adaptable(name, leaf, config)}


def is_adaptable(name: str, leaf: Any, config) -> bool:
    """Is this parameter a matrix of a layer?  Those of an adapter itself are not."""
    *path, last = name.split(".")
    in_layer = name.startswith(config.BODY) and any(map(str.isdigit, path))
    return in_layer and last == "weight" and leaf.ndim == 2 and path[-1] not in OWN


def targeted(tree, config, lora: Lora) -> dict[str, tuple[int, int]]:
    """Those of matrices() that the settings name.  Raises UserError for a name without one, or too high a rank."""
    known = matrices(tree, config)
    short = sorted({path.rpartition(".")[2] for path in known})
    if not known:
        raise UserError("lora trains adapters of a transformer's matrices, of which this model has none; remove lora")
    for target in lora.targets:
        if target != ALL and not any(f".{path}".endswith(f".{target}") for path in known):
            raise UserError(f"lora names {target!r}, but the layers of this model have no such matrix; give some of "
                            f"{', '.join(short)}, or {ALL}")
    chosen = {path: shape for path, shape in known.items()
              if ALL in lora.targets or any(f".{path}".endswith(f".{target}") for target in lora.targets)}
    for path, shape in chosen.items():
        if lora.rank > min(shape):
            raise UserError(f"rank is {lora.rank}, but {path} is {shape[0]} x {shape[1]} and has no more than "
                            f"{min(shape)}; make rank smaller")
    if not chosen:
        raise UserError(f"lora names no matrix; give some of {', '.join(short)}, or {ALL}")
    return chosen


def begun(tree, config, lora: Lora, seed: int = 0, dtype="float32") -> dict[str, np.ndarray]:
    """The arrays of a new adapter: A is uniform in ±D^-½, B zero, and m the row norms, so that W' is W at first.

    Raises UserError as targeted() does.
    """
    rng = generator(seed, "lora")
    arrays: dict[str, np.ndarray] = {}
    for path, (F, D) in targeted(tree, config, lora).items():
        arrays[f"{path}.lora_A.weight"] = rng.uniform(-D ** -0.5, D ** -0.5, (lora.rank, D)).astype(dtype)
        arrays[f"{path}.lora_B.weight"] = np.zeros((F, lora.rank), dtype)
        arrays[f"{path}.lora_scale"] = np.asarray(lora.scale, dtype)
        if lora.dora:
            weight = at(tree, path)["weight"]
            w = weight.T if f"{path}.weight".endswith(config.TRANSPOSED) else weight
            norms = [np.linalg.norm(panel, axis=1) for _, panel in panels(w, dtype)]
            arrays[f"{path}.{DORA}"] = np.concatenate(norms).astype(dtype)
        if lora.dora == "detached":
            arrays[f"{path}.{DETACHED}"] = np.ones((), dtype)
    return arrays


def attached(tree, arrays):
    """The tree with these arrays {name: array} in it, in place of those of these names; all others are shared."""
    tree = params.rebuild(tree, (leaf for _, leaf in params.leaves(tree)))
    for name, a in arrays.items():
        path, _, last = name.rpartition(".")
        at(tree, path)[last] = a
    return tree


def at(tree, path):
    """The branch with this dotted name, which is made if it is not there."""
    for key in path.split("."):
        tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
    return tree


def of_adapter(tree) -> dict[str, np.ndarray]:
    """{name: array} of what adapters have added to the tree."""
    return {name: leaf for name, leaf in params.leaves(tree) if not set(OWN).isdisjoint(name.split("."))}
