"""bfloat16: what is rounded and what is not, and the bounds of errors in docs/bfloat16.md."""
import ml_dtypes
import numpy as np
import pytest

from pyllama import backend, ops
from pyllama.models.layers import class_loss
from pyllama.op import Op

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
pytestmark = pytest.mark.usefixtures("unregistered")


def doubled(x, *others):
    return 2 * x, ()


def doubled_backward(dy):
    return dy + dy, None


def scaled(x, w, *, power=1):
    assert x.dtype == w.dtype == "float32"
    return x * w ** power, (x, w, x + 1)


def scaled_backward(dy, x, w, computed, *, power=1):
    assert dy.dtype == x.dtype == w.dtype == computed.dtype == "float32"
    np.testing.assert_array_equal(computed, x + 1)
    return dy * w ** power, (dy * x * power * w ** (power - 1)).sum(axis=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_call_in_bfloat16_computes_in_float32_and_rounds_once(precision):
    """1 + 2⁻⁷ is bfloat16's successor of 1; its cube and its product with 3 are not in bfloat16."""
    op = Op("x[N D], w[D] -> y[N D]", scaled, scaled_backward, name="scaled", weights=("w",))
    x = np.array([[3.0], [1 + 2.0 ** -7]]).astype(BFLOAT16)
    w = np.array([1 + 2.0 ** -7]).astype(precision)
    y, back = op(x, w, power=3)
    dx, dw = back(y)
    exact = x.astype("float32") * w.astype("float32") ** 3
    assert y.dtype == dx.dtype == BFLOAT16
    np.testing.assert_array_equal(y, exact.astype(BFLOAT16))
    np.testing.assert_array_equal(dx, (y.astype("float32") * w.astype("float32") ** 3).astype(BFLOAT16))
    assert dw.dtype == "float32"
    assert dw[0] != dw[0].astype(BFLOAT16)
    with pytest.raises(TypeError, match="dy is float32 but y is bfloat16; convert one"):
        back(exact)


def test_a_gradient_has_the_precision_of_its_input_unless_the_op_says_that_it_is_a_weight():
    """Whatever the input is called: the op before takes no float32 for its bfloat16 output."""
    op = Op("w[N K], b[K M] -> y[N M]", lambda w, b: (w @ b, (w, b)), lambda dy, w, b: (dy @ b.T, w.T @ dy))
    w, (b, relu_back) = np.ones((2, 3), BFLOAT16), ops.relu(np.ones((3, 4), BFLOAT16))
    y, back = op(w, b)
    dw, db = back(y)
    assert dw.dtype == db.dtype == relu_back(db)[0].dtype == BFLOAT16
    assert op(w, b.astype("float32"))[1](y)[1].dtype == "float32"


def test_both_tables_of_glove_have_gradients_in_float32():
    table, ids, ones = np.ones((2, 3), BFLOAT16), np.array([0, 1]), np.ones((2, 1), BFLOAT16)
    _, back = ops.glove(table, table, *np.zeros((2, 2), "float32"), ids, ids, ones, ones)
    assert [None if g is None else g.dtype for g in back(1.0)] == [*["float32"] * 4, None, None, *[BFLOAT16] * 2]


@pytest.mark.parametrize("name", ["v", "ids"])
def test_a_weight_is_a_floating_input(name):
    with pytest.raises(ValueError, match=f"weights names '{name}', not a floating input of 'ids.*'; name those"):
        Op("ids[N]<V, w[V D] -> y[N D]", doubled, doubled_backward, weights=("w", name))


def test_only_float32_may_stand_beside_bfloat16_and_not_first():
    op = Op("x[... D], w[D] -> y[... D]", doubled, doubled_backward)
    low = np.ones(3, BFLOAT16)
    for x, w, message in [(low, np.ones(3), "w is float64 but x is bfloat16"),
                          (low, np.ones(3, "float16"), "w is float16 but x is bfloat16"),
                          (np.ones(3, "float32"), low, "w is bfloat16 but x is float32")]:
        with pytest.raises(TypeError, match=message):
            op(x, w)


def test_back_in_bfloat16_keeps_what_was_given_and_what_it_returned():
    def squared(x):
        y = x * x
        return y, (x, y)

    op = Op("x[D] -> y[D]", squared, lambda dy, x, y: (2 * x * dy + 0 * y,), name="squared")
    x = np.arange(3).astype(BFLOAT16)
    result, *_ = op.run([x], {}, "bfloat16")
    y, saved = result
    assert len([a for a in saved if isinstance(a, np.ndarray)]) == 2
    assert saved[0] is x
    assert saved[1] is y


def test_a_number_that_a_call_in_bfloat16_returns_is_float32():
    op = Op("x[D] -> loss[]", lambda x: (np.sum(x), (x,)), lambda dloss, x: (np.full_like(x, dloss),), name="sum")
    loss, back = op(np.array([1, 2.0 ** -9]).astype(BFLOAT16))
    assert loss == np.float32(1 + 2.0 ** -9)
    dx, = back(1 + 2.0 ** -9)
    assert dx.tolist() == [1, 1]


@pytest.mark.parametrize("precision", [BFLOAT16, np.dtype("float32")])
def test_rows_without_weight_have_a_loss_and_a_gradient_of_zero(precision):
    z = np.ones((2, 3), precision)
    loss, back = class_loss(z, np.array([0, 2]), np.zeros(2))
    dz, _ = back()
    assert isinstance(loss, float)
    assert loss == 0
    assert dz.dtype == precision
    np.testing.assert_array_equal(dz, np.zeros((2, 3)))


@pytest.mark.parametrize("takes", [True, False])
def test_only_the_kernels_that_a_module_lists_take_bfloat16(monkeypatch, takes):
    """The others run on widened inputs."""
    seen = []

    class Kernels:
        LOW = frozenset({"doubled"} if takes else {})
        doubled_backward = staticmethod(doubled_backward)

        @staticmethod
        def doubled(x):
            seen.append(x.dtype)
            return x + x, ()

    def forward(x):
        raise AssertionError("the kernels run")

    forward.__module__ = "pyllama.ops.doubled"
    monkeypatch.setattr(backend, "cpu", Kernels)
    y, back = Op("x[D] -> y[D]", forward, doubled_backward)(np.ones(2, BFLOAT16))
    dx, = back(y)
    assert (y.tolist(), dx.tolist()) == ([2, 2], [4, 4])
    assert dx.dtype == BFLOAT16
    assert seen == [BFLOAT16 if takes else np.float32]


@pytest.mark.parametrize("labels", [[0.5, -1.0, 3.0], [0.1, 0.2, 0.3]])
def test_the_squared_error_of_scores_in_bfloat16(labels):
    """Neither the loss nor the labels are rounded; the gradient is, once."""
    z, labels = np.array([[0.25], [-2.0], [1.0]]).astype(BFLOAT16), np.array(labels)
    value, back = class_loss(z, labels)
    difference = wide(z)[:, 0] - labels
    dz, _ = back(0.5)
    assert dz.dtype == BFLOAT16
    np.testing.assert_allclose(value, (difference ** 2).mean(), rtol=2.0 ** -21)
    require_within(dz[:, 0], difference / 3, 4 * U * np.abs(difference))


# --- the bounds of docs/bfloat16.md -----------------------------------------------------------------------------------

V, U = 2.0 ** -8, 2.0 ** -24                                # the roundings to bfloat16 and to float32
T = 2.0 ** -126                                             # the least normal number


def gamma(n):
    return n * U / (1 - n * U)


def low(x):
    return np.asarray(x).astype(BFLOAT16)


def wide(x):
    return np.asarray(x).astype(np.float64)


def factors(kind, rng, N, E, D):
    """x [N D], w [E D]: random, or such that errors add up."""
    x, w = rng.standard_normal((N, D)), rng.standard_normal((E, D))
    if kind == "equal":                                     # errors do not cancel by chance
        x, w = np.full_like(x, 1 + 2.0 ** -7), np.full_like(w, 1 + 2.0 ** -7)
    elif kind == "cancelling":                              # the sum is small beside its terms
        x[:, 1::2], w[:, 1::2] = x[:, :D // 2 * 2:2], -w[:, :D // 2 * 2:2]
    elif kind == "spread":                                  # large terms swallow small ones
        x, w = x * 2.0 ** rng.integers(-30, 30, x.shape), w * 2.0 ** rng.integers(-30, 30, w.shape)
    elif kind == "tiny":                                    # denormals, which instructions take as zero
        x = x * 2.0 ** rng.integers(-132, -100, x.shape)
    return low(x), low(w)


KINDS = ["random", "equal", "cancelling", "spread", "tiny"]


def product(a, b, more=0):
    """a b of a [M K], b [K N], and the bound of its error before it is rounded to bfloat16."""
    a, b = wide(a), wide(b)
    K = a.shape[1] + more
    absolute = T * (np.abs(a).sum(1)[:, None] + np.abs(b).sum(0)) + 2 * K * T
    return a @ b, gamma(K) * (np.abs(a) @ np.abs(b)) + absolute


def require_within(got, exact, bound):
    """A result in bfloat16 is rounded once more."""
    if got.dtype == BFLOAT16:
        bound = V * np.abs(exact) + (1 + V) * bound + T
    assert (np.abs(wide(got) - exact) <= bound).all()


@pytest.mark.parametrize("D", [1, 2, 33, 768])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", backend.available())
def test_the_error_of_a_product(kind, D, on):
    """That of y, of dx, which is a product of length E, and of dw, a product of N terms that is not rounded."""
    rng, N, E = np.random.default_rng(D), 70, 50
    x, w = factors(kind, rng, N, E, D)
    dy, b = factors(kind, rng, N, 1, E)[0], rng.standard_normal(E).astype(np.float32)
    with backend.use(on):
        y, back = ops.linear(x, w, b)
        dx, dw, db = back(dy)
    exact, bound = product(np.hstack([wide(x), np.ones((N, 1))]), np.vstack([wide(w).T, wide(b)]))
    require_within(y, exact, bound)
    require_within(dx, *product(dy, w))
    require_within(dw, *product(dy.T, x))
    require_within(db[None], *product(np.ones((1, N)), dy))


def heads(kind, rng, n, K):
    """q [n K], k [n K], v [n K] of one head."""
    q, k, v = (rng.standard_normal((n, K)) for _ in "qkv")
    if kind == "large scores":
        q *= 30
    elif kind == "alike":                                   # all p are rounded in the same direction
        k[:] = 0
        v = np.abs(v)
    elif kind == "cancelling":
        v[1::2] = -v[:n // 2 * 2:2]
        k[1::2] = k[:n // 2 * 2:2]
    return low(q), low(k), low(v)


@pytest.mark.parametrize("n", [1, 3, 100, 513])
@pytest.mark.parametrize("kind", ["random", "large scores", "alike", "cancelling"])
@pytest.mark.parametrize("on", backend.available())
def test_the_error_of_attention(kind, n, on):
    K = 40
    q, k, v = heads(kind, np.random.default_rng(n), n, K)
    with backend.use(on):
        y, _ = ops.attention(q[None, None, None], k[None, None], v[None, None])
    a, sizes = (wide(q) @ wide(k).T) / K ** 0.5, np.abs(wide(q)) @ np.abs(wide(k)).T / K ** 0.5
    p = np.exp(a - a.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    zeta = gamma(K + 4) * sizes.max(axis=1, keepdims=True)
    kappa = (1 + V) * np.exp(2 * zeta) * (1 + 2.0 ** -21) ** 2 * ((1 + gamma(2 * n)) / (1 - gamma(2 * n))) ** 2 - 1
    require_within(y[0, 0, 0], p @ wide(v), kappa * (p @ np.abs(wide(v))) + n * T * np.abs(wide(v)).max())


@pytest.mark.parametrize("words", [1, 7, 300])
@pytest.mark.parametrize("kind", ["random", "equal", "cancelling"])
@pytest.mark.parametrize("on", backend.available())
def test_the_error_of_the_loss_and_of_its_gradient(kind, words, on):
    rng, N, D = np.random.default_rng(words), 90, 64
    x, w = factors(kind, rng, N, words, D)
    t = rng.integers(words, size=N)
    with backend.use(on):
        loss, back = ops.linear_cross_entropy(x, w, t)
        dx, dw, _ = back(1.0)
    z, zeta = wide(x) @ wide(w).T, gamma(D) * (np.abs(wide(x)) @ np.abs(wide(w)).T).max(axis=1, keepdims=True)
    top = z.max(axis=1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    of_target = z[np.arange(N), t]
    arithmetic = 2.0 ** -21 + gamma(words + N + 8) * (1 + np.abs(lse).max() + np.abs(of_target).max())
    assert loss.dtype == np.float32
    assert abs(float(loss) - (lse[:, 0] - of_target).mean()) <= 2 * zeta.mean() + arithmetic
    p = np.exp(z - lse)
    dz = (p - (np.arange(words) == t[:, None])) / N
    epsilon = np.exp(2 * zeta) * (1 + 2.0 ** -20) * (1 + gamma(words)) - 1
    off = V * np.abs(dz) + 2 * epsilon * p / N + 4 * U / N
    for got, error, size, other in ((dw, off.T, np.abs(dz).T, wide(x)), (dx, off, np.abs(dz), wide(w))):
        n = len(other)
        exact = (dz.T if got is dw else dz) @ other
        require_within(got, exact, ((1 + gamma(n)) * error + gamma(n) * size) @ np.abs(other))
