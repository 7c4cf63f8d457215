"""The products of a gradient by the formulas in the ops' docstrings, such as dx_nd = Σ_e dy_ne w_ed of linear."""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyllama.ops import attention as attention_op
from pyllama.ops import cross_entropy
from pyllama.ops.attention import biased, factor, rows, scores, visible
from pyllama.study.explain.recording import Call

Cells = tuple[np.ndarray, ...]                  # an index array for each axis
ATTENTION: dict[str, Any] = {"causal": False, "window": None, "scale": None, "softcap": None}     # options left out
Factors = Callable[[Cells], tuple[np.ndarray, np.ndarray]]


class Group(NamedTuple):
    """Products with the same factors' names.

    left, right     such as "dy[{0},{j0}]" and "w[{j0},{1}]": {0}, {1}, ... is the index of the cell, {j0}, {j1}, ...
                    the index that is summed over
    shape           of the index that is summed over
    """
    left: str
    right: str
    shape: tuple[int, ...]


class Products(NamedTuple):
    """The products of the gradient of an input.

    method      "formula" or "complex step"
    groups      the products, one group after the other
    factors     factors(cells) gives left and right [number of cells, number of products], float64
    """
    method: str
    groups: list[Group]
    factors: Factors


def double(x):
    return np.asarray(x, np.float64)


def indices(count: int, start: int = 0, letter: str = "") -> str:
    """"{0},{1},", for `count` axes."""
    return "".join(f"{{{letter}{i}}}," for i in range(start, start + count))


def of_rows(dy, w, name: str, lead: tuple[int, ...]) -> Products:
    """dx_nd = Σ_e dy_ne w_ed: dy [N E], w [E D]; name is that of dy."""
    axes = len(lead)
    group = Group(f"{name}[{indices(axes)}{{j0}}]", f"w[{{j0}},{{{axes}}}]", (len(w),))

    def factors(cells):
        n = np.ravel_multi_index(cells[:-1], lead) if lead else np.zeros(len(cells[-1]), int)
        return dy[n], w[:, cells[-1]].T

    return Products("formula", [group], factors)


def of_weights(dy, x, name: str, lead: tuple[int, ...]) -> Products:
    """dw_ed = Σ_n dy_ne x_nd: dy [N E], x [N D]; name is that of dy."""
    n = indices(len(lead), letter="j")
    group = Group(f"{name}[{n}{{0}}]", f"x[{n}{{1}}]", lead)
    return Products("formula", [group], lambda cells: (dy[:, cells[0]].T, x[:, cells[1]].T))


def linear_arrays(call: Call):
    x, w = call.inputs[:2]
    return double(x).reshape(-1, w.shape[1]), double(w), double(call.dys[0]).reshape(-1, len(w)), x.shape[:-1]


def linear_x(call: Call) -> Products:
    _, w, dy, lead = linear_arrays(call)
    return of_rows(dy, w, "dy", lead)


def linear_w(call: Call) -> Products:
    x, _, dy, lead = linear_arrays(call)
    return of_weights(dy, x, "dy", lead)


def linear_b(call: Call) -> Products:
    """db_e = Σ_n dy_ne"""
    _, _, dy, lead = linear_arrays(call)
    group = Group(f"dy[{indices(len(lead), letter='j')}{{0}}]", "1", lead)
    return Products("formula", [group], lambda cells: (dy[:, cells[0]].T, np.ones((len(cells[0]), len(dy)))))


def embedding_w(call: Call) -> Products:
    """dw_vd = Σ_n [ids_n = v] dy_nd"""
    ids, w = call.inputs
    flat, dy = ids.reshape(-1), double(call.dys[0]).reshape(-1, w.shape[1])
    n = indices(ids.ndim, letter="j")
    group = Group(f"dy[{n}{{1}}]", f"[ids[{n.rstrip(',')}] = {{0}}]", ids.shape)
    return Products("formula", [group], lambda cells: (dy[:, cells[1]].T, double(flat == cells[0][:, None])))


def logit_gradient(call: Call):
    """dz [N V] of linear_cross_entropy, and x, w and N."""
    x, w, t = call.inputs
    options = {name: value for name, value in call.options.items() if name != "chunk"}
    _, saved = cross_entropy.forward(double(x) @ double(w).T, t, **options)
    dz, _ = cross_entropy.backward(double(call.dys[0]), *saved, **options)
    return dz, double(x), double(w), x.shape[:1]


def head_x(call: Call) -> Products:
    dz, _, w, lead = logit_gradient(call)
    return of_rows(dz, w, "dz", lead)


def head_w(call: Call) -> Products:
    dz, x, _, lead = logit_gradient(call)
    return of_weights(dz, x, "dz", lead)


class Weights(NamedTuple):
    """Of an attention the weights p [B G R*T S], the scores u before bias and mask, and the output y [B G R*T K]."""
    p: np.ndarray
    u: np.ndarray
    y: np.ndarray


def attention_weights(call: Call) -> Weights:
    """The Weights of a call of attention, in float64."""
    names = [x.name for x in call.op.inputs]
    given = dict.fromkeys(names) | dict(zip(names, call.inputs, strict=False))
    q, k, v = map(double, call.inputs[:3])
    bias = None if given["bias"] is None else double(given["bias"])
    options = ATTENTION | call.options
    seen = visible(q, k, given["mask"], given["segments"], options["causal"], options["window"])
    u = scores(q, k, options["scale"], options["softcap"])
    a = biased(u, bias, seen, q)
    y, (*_, lse) = attention_op.forward(q, k, v, given["mask"], given["segments"], bias, **options)
    return Weights(np.exp(a - lse), u, rows(y))


def attention_maps(call: Call):
    """(p, dp, dz), each [B G R*T S], as in the derivation of attention; dz includes the scale of the scores."""
    q, _, v = map(double, call.inputs[:3])
    options, (p, u, y) = ATTENTION | call.options, attention_weights(call)
    dy = rows(double(call.dys[0]))
    dp = dy @ v.swapaxes(-1, -2)
    dz = p * (dp - np.sum(dy * y, axis=-1, keepdims=True)) * factor(q, options["scale"])
    return p, dp, dz if options["softcap"] is None else dz * (1 - (u / options["softcap"]) ** 2)


def attention_q(call: Call) -> Products:
    """dq_ti = Σ_s dz_ts k_si"""
    (q, k), (_, _, dz) = call.inputs[:2], attention_maps(call)
    dz = dz.reshape(*q.shape[:4], -1)
    group = Group("dz[{0},{1},{2},{3},{j0}]", "k[{0},{1},{j0},{4}]", k.shape[2:3])
    return Products("formula", [group], lambda cells: (dz[cells[:4]], double(k)[cells[0], cells[1], :, cells[4]]))


def attention_k(call: Call) -> Products:
    """dk_si = Σ_t dz_ts q_ti, over the queries of all heads that share k"""
    _, _, dz = attention_maps(call)
    return over_queries(dz, rows(double(call.inputs[0])), "dz", "q", call.inputs[0].shape)


def attention_v(call: Call) -> Products:
    """dv_si = Σ_t p_ts dy_ti, over the queries of all heads that share v"""
    p, _, _ = attention_maps(call)
    return over_queries(p, rows(double(call.dys[0])), "p", "dy", call.inputs[0].shape)


def over_queries(left, right, left_name: str, right_name: str, shape) -> Products:
    """Σ_rt left_rts right_rti: left [B G R*T S], right [B G R*T K]; shape is that of q."""
    group = Group(f"{left_name}[{{0}},{{1}},{{j0}},{{j1}},{{2}}]", f"{right_name}[{{0}},{{1}},{{j0}},{{j1}},{{3}}]",
                  shape[2:4])
    return Products("formula", [group], lambda cells: (left[cells[0], cells[1], :, cells[2]],
                                                       right[cells[0], cells[1], :, cells[3]]))


FORMULAS = {("linear", "x"): linear_x, ("linear", "w"): linear_w, ("linear", "b"): linear_b,
            ("embedding", "w"): embedding_w, ("linear_cross_entropy", "x"): head_x,
            ("linear_cross_entropy", "w"): head_w, ("attention", "q"): attention_q, ("attention", "k"): attention_k,
            ("attention", "v"): attention_v}
