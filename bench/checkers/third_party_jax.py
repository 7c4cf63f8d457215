"""JAX functions with custom_vjp and custom_jvp in the style of training code, and JAX's own."""
import jax
import jax.numpy as jnp

from bench.checkers.third_party_case import Case, between, normal

X, Y, W = normal(3, 4), normal(3, 4, seed=1), between(0.5, 2, 4)


def arrays(*inputs):
    return [jnp.array(x) for x in inputs]


@jax.custom_vjp
def rms_norm(x, w):
    return w * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)


def rms_norm_fwd(x, w):
    r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
    return w * x * r, (x, w, r)


def rms_norm_bwd(saved, dy):
    x, w, r = saved
    g = w * dy
    return r * (g - x * r * r * jnp.mean(g * x, -1, keepdims=True)), (dy * x * r).sum(range(x.ndim - 1))


rms_norm.defvjp(rms_norm_fwd, rms_norm_bwd)


@jax.custom_vjp
def swiglu(gate, up):
    return jax.nn.silu(gate) * up


def swiglu_bwd(saved, dy):
    gate, up = saved
    s = jax.nn.sigmoid(gate)
    return dy * up * s * (1 + gate * (1 - s)), dy * gate * s


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), swiglu_bwd)


@jax.custom_vjp
def cross_entropy(logits, labels):
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, labels[:, None], -1)[:, 0])


def cross_entropy_bwd(saved, dy):
    logits, labels = saved
    return dy * (jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])) / len(labels), None


cross_entropy.defvjp(lambda *x: (cross_entropy(*x), x), cross_entropy_bwd)


@jax.custom_jvp
def log1pexp(x):
    return jnp.log1p(jnp.exp(x))


@log1pexp.defjvp
def log1pexp_jvp(primals, tangents):
    return log1pexp(*primals), jax.nn.sigmoid(primals[0]) * tangents[0]


@jax.custom_vjp
def clip_gradient(x):
    return x


clip_gradient.defvjp(lambda x: (x, None), lambda _, dy: (jnp.clip(dy, -0.1, 0.1),))

FUNCTIONS = [
    ("rms_norm, custom_vjp", rms_norm, arrays(X, W)),
    ("swiglu, custom_vjp", swiglu, arrays(X, Y)),
    ("cross_entropy, custom_vjp", cross_entropy, arrays(X, [1, 3, 0])),
    ("log1pexp, custom_jvp", log1pexp, arrays(X)),
    ("rms_norm, jit", jax.jit(rms_norm), arrays(X, W)),
    ("layer_norm", lambda x, w: w * (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True), arrays(X, W)),
    ("gelu", jax.nn.gelu, arrays(X)),
    ("softmax", jax.nn.softmax, arrays(X)),
    ("logsumexp", lambda x: jax.nn.logsumexp(x, -1), arrays(X)),
    ("relu", jax.nn.relu, arrays(X)),
    ("relu at 0", jax.nn.relu, arrays([0.0, 1.0, -1.0])),
    ("abs at 0", jnp.abs, arrays([0.0, 1.0, -1.0])),
    ("max of equal numbers", jnp.max, arrays([2.0, 1.0, 2.0])),
    ("sort", jnp.sort, arrays(X)),
    ("cumsum", jnp.cumsum, arrays(X)),
    ("scan", lambda a, x: jax.lax.scan(lambda h, ax: (ax[0] * h + ax[1],) * 2, jnp.zeros(4), (a, x))[1], arrays(X, Y)),
    ("attention", lambda q, k, v: jax.nn.softmax(q @ k.T / 2) @ v, arrays(X, Y, normal(3, 4, seed=2))),
    ("solve", jnp.linalg.solve, arrays(normal(3, 3) / 4 + [[2, 0, 0], [0, 3, 0], [0, 0, 4]], normal(3))),
    ("a tree", lambda p: {"y": jnp.tanh(p["x"] @ p["w"]), "z": p["w"].sum()}, [{"x": jnp.array(X), "w": jnp.array(W)}]),
]


def cases():
    for name, function, inputs in FUNCTIONS:
        yield Case(name, function, inputs)
    yield Case("norm at 0", jnp.linalg.norm, arrays([0.0, 0.0]), "divides by the norm: NaN, where 0 is a subgradient")
    yield Case("clip_gradient, custom_vjp", clip_gradient, arrays(X), "clips the gradient, on purpose")
