"""Optimizers compared with scalar versions of their formulas, with a tolerance that follows the rounding errors.

Every test runs on every backend.
"""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllama import backend
from pyllama.errors import UserError
from pyllama.training import optim
from pyllama.training.optim import SGD, AdamW, matrix_slices

DTYPES = [np.float32, np.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
built = pytest.mark.skipif(backend.cpu is None, reason=backend.why_no_cpu)


@pytest.fixture(autouse=True, scope="module", params=backend.available())
def on(request):
    with backend.use(request.param):
        yield request.param


def numbers(dtype, low, high):
    """Zero, or a number of dtype with low <= |x| <= high: no operation below underflows or overflows."""
    magnitude = st.floats(low, high).map(lambda x: float(dtype(x)))
    return st.one_of(st.just(0.0), magnitude, magnitude.map(lambda x: -x))


@st.composite
def runs(draw, dtype):
    """Some steps of some parameters, a few of which are matrices: (p, gs, matrices, lr, decay)."""
    n = draw(st.integers(1, 7))
    p = draw(arrays(dtype, n, elements=numbers(dtype, 1e-3, 1e3)))
    gs = draw(st.lists(arrays(dtype, n, elements=numbers(dtype, 1e-6, 1e6)), min_size=1, max_size=6))
    a, b = sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    return p, gs, [slice(a, b)], draw(st.floats(1e-5, 1)), draw(st.sampled_from([0.0, 0.01, 0.3]))


betas = st.one_of(st.just(0.0), st.floats(0.1, 0.999))
rules = st.one_of(
    st.tuples(st.just(AdamW), st.fixed_dictionaries({"betas": st.tuples(betas, betas),
                                                     "eps": st.sampled_from([1e-8, 1e-3])})),
    st.tuples(st.just(SGD), st.one_of(
        st.just({}), st.fixed_dictionaries({"momentum": st.floats(0.1, 0.99), "nesterov": st.booleans()}))))


def run(make, options, p, gs, matrices, lr, decay, scale=1.0):
    p, optimizer = p.copy(), make(p.size, p.dtype, matrices=matrices, **options)
    for g in gs:
        g.setflags(write=False)                         # the gradient is not the optimizer's to change
        optimizer.step(p, g, lr, decay, scale)
    return p, optimizer


# The transcriptions take one number through all steps in np.longdouble, and beside each exact quantity x they carry a
# first-order bound e_x on the error of the same quantity computed in dtype, in units of its unit roundoff u = eps/2:
# every operation, and every constant rounded to dtype, adds one relative u of its result, and errors that came in are
# carried on by the absolute value of the derivative.  The longdouble's own rounding, where that type is no wider than
# float64, and the second-order terms are covered by the factor 2 in `close`.

def descend(p, e, d, e_d, lr, decay):
    """p - η (d + λp): roundings of λ, λp, the sum, η, the product and the difference."""
    pull = decay * p
    s, e_s = d + pull, e_d + decay * e + 2 * abs(pull)
    e_s += abs(s)
    move, e_move = lr * s, lr * e_s + 2 * lr * abs(s)
    return p - move, e + e_move + abs(p - move)


def scaled(g, scale):
    """scale * g, in float64 and rounded once more to dtype: u if it is dtype, less than u and a little if not."""
    g = np.longdouble(g) * np.longdouble(scale)
    return g, abs(g) if scale != 1 else np.longdouble(0)


def adamw(p, gs, lr, decay, scale, betas, eps):
    L = np.longdouble
    (b1, b2), eps, lr, decay = map(L, betas), L(eps), L(lr), L(decay)
    p, e, m, e_m, v, e_v = L(p), L(0), L(0), L(0), L(0), L(0)
    for t, g in enumerate(gs, start=1):
        g, e_g = scaled(g, scale)
        # β₁ and 1 - β₁ are rounded, and the products
        e_m = b1 * e_m + 2 * abs(b1 * m) + (1 - b1) * (e_g + 2 * abs(g))
        m = b1 * m + (1 - b1) * g
        e_m += abs(m)
        e_v = b2 * e_v + 2 * b2 * v + (1 - b2) * abs(g) * (2 * e_g + 3 * abs(g))
        v = b2 * v + (1 - b2) * g * g
        e_v += v
        # 1 - βᵗ is made in float64: besides its rounding to dtype, that of βᵗ weighs up to 1/(1 - βᵗ) as much.
        c1, c2 = 1 - b1 ** t, 1 - b2 ** t
        e_c1, e_c2 = 2 * c1 + b1 ** t, 2 * c2 + b2 ** t
        root = np.sqrt(v / c2)
        # √v, √c₂, its rounding to dtype and the quotient round; √ halves the relative errors of v and c₂.
        e_root = root * ((e_v / v if v else 0) / 2 + e_c2 / c2 / 2 + 4)
        bottom, e_bottom = root + eps, e_root + eps + (root + eps)
        d = m / c1 / bottom
        e_d = e_m / c1 / bottom + abs(d) * (e_bottom / bottom + e_c1 / c1 + 2)
        p, e = descend(p, e, d, e_d, lr, decay)
    return p, e


def sgd(p, gs, lr, decay, scale, momentum=0.0, nesterov=False):
    L = np.longdouble
    mu, lr, decay = L(momentum), L(lr), L(decay)
    p, e, v, e_v = L(p), L(0), L(0), L(0)
    for g in gs:
        g, e_g = scaled(g, scale)
        e_v = mu * e_v + 2 * abs(mu * v) + e_g
        v = mu * v + g
        e_v += abs(v)
        d, e_d = (g + mu * v, e_g + mu * e_v + 2 * abs(mu * v)) if nesterov else (v, e_v)
        p, e = descend(p, e, d, e_d + abs(d), lr, decay)
    return p, e


TRANSCRIPTION = {AdamW: adamw, SGD: sgd}


def close(x, exact, e):
    return abs(np.longdouble(x) - exact) <= 2 * e * np.finfo(x.dtype).eps / 2


@each_dtype
@given(data=st.data(), rule=rules, scale=st.just(1.0) | st.floats(1e-3, 2))
def test_every_number_follows_the_formula(dtype, data, rule, scale):
    make, options = rule
    p, gs, matrices, lr, decay = data.draw(runs(dtype))
    after, _ = run(make, options, p, gs, matrices, lr, decay, scale)
    assert after.dtype == dtype
    for i in range(p.size):
        in_matrix = matrices[0].start <= i < matrices[0].stop
        exact, e = TRANSCRIPTION[make](p[i], [g[i] for g in gs], lr, decay if in_matrix else 0.0, scale, **options)
        assert close(after[i], exact, e), (i, after[i], exact, e)


@each_dtype
@given(data=st.data(), rule=rules, cut=st.integers(0, 7), block=st.integers(1, 7))
def test_the_vector_may_be_cut_anywhere(dtype, data, rule, cut, block):
    """Two optimizers of the two parts, and blocks of any size, give the same bits as one of the whole."""
    make, options = rule
    p, gs, [matrix], lr, decay = data.draw(runs(dtype))
    cut = min(cut, p.size)
    whole, _ = run(make, options, p, gs, [matrix], lr, decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "BLOCK", block)
        parts = []
        for part in slice(0, cut), slice(cut, p.size):
            start, stop = (np.clip(edge, part.start, part.stop) - part.start for edge in (matrix.start, matrix.stop))
            parts.append(run(make, options, p[part], [g[part] for g in gs], [slice(start, stop)], lr, decay)[0])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


EVERY_RULE = {"adamw": (AdamW, {}), "sgd": (SGD, {}), "momentum": (SGD, {"momentum": 0.9}),
              "nesterov": (SGD, {"momentum": 0.9, "nesterov": True})}
each_rule = pytest.mark.parametrize(("make", "options"), EVERY_RULE.values(), ids=EVERY_RULE)


@each_dtype
@each_rule
def test_a_vector_as_long_as_a_register_s_may_be_cut_anywhere(dtype, make, options):
    """Whether a number is one of a register's or one of the rest changes none of its bits, nor does its address."""
    n, rng = 131, np.random.default_rng(0)
    p, *gs = rng.standard_normal((4, n)).astype(dtype)
    whole, _ = run(make, options, p, gs, [slice(0, n)], 0.1, 0.1, 0.7)
    for cut in range(n + 1):
        after = p.copy()
        for part in slice(0, cut), slice(cut, n):
            optimizer = make(after[part].size, dtype, matrices=[slice(0, after[part].size)], **options)
            for g in gs:
                optimizer.step(after[part], g[part], 0.1, 0.1, 0.7)
        np.testing.assert_array_equal(after, whole)


@built
@each_dtype
@each_rule
def test_no_bit_depends_on_the_thread_count(dtype, make, options):
    n, before, results = 300_007, backend.cpu.threads(), []
    p, *gs = np.random.default_rng(0).standard_normal((3, n)).astype(dtype)
    for threads in 1, 2, 3, 7:
        backend.cpu.set_threads(threads)
        after, optimizer = run(make, options, p, gs, [slice(10, 200_000)], 0.1, 0.1)
        results.append([after, *optimizer.state().values()])
    backend.cpu.set_threads(before)
    for result in results[1:]:
        assert all(map(np.array_equal, result, results[0]))


@each_rule
def test_the_scale_is_that_of_the_gradient(make, options):
    """To the bit in float32, in which the product is rounded before it is used; also one that float32 cannot hold."""
    p, g = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    for size, scale in (1, 0.3), (1e38, 1e-41):
        g = size * g
        after, _ = run(make, options, p, [g], [], 0.1, 0.0, scale)
        expected, _ = run(make, options, p, [(g.astype(np.float64) * scale).astype(np.float32)], [], 0.1, 0.0)
        np.testing.assert_array_equal(after, expected)


@each_dtype
@given(data=st.data(), rule=rules, at=st.integers(0, 6))
def test_a_saved_state_goes_on_bit_for_bit(dtype, data, rule, at):
    make, options = rule
    p, gs, matrices, lr, decay = data.draw(runs(dtype))
    whole, _ = run(make, options, p, gs, matrices, lr, decay)
    half, optimizer = run(make, options, p, gs[:at], matrices, lr, decay)
    state = {key: a.copy() for key, a in optimizer.state().items()}
    resumed = make(p.size, dtype, matrices=matrices, **options)
    resumed.load(state)
    for g in gs[at:]:
        resumed.step(half, g, lr, decay)
    np.testing.assert_array_equal(half, whole)
    assert int(resumed.state()["step"]) == len(gs)


@each_dtype
@given(data=st.data(), rule=rules)
def test_zero_gradients_leave_the_decay_alone(dtype, data, rule):
    """From a fresh state d = 0, so each step is p ← p - ηλp in the matrices and nothing at all elsewhere."""
    make, options = rule
    p, gs, [matrix], lr, decay = data.draw(runs(dtype))
    after, _ = run(make, options, p, [0 * g for g in gs], [matrix], lr, decay)
    expected = p.copy()
    for _ in gs:
        expected[matrix] -= expected[matrix] * decay * lr
    # A processor may add a product unrounded.  In a step p shrinks to 0.7 p at least, and the roundings of two
    # products of 0.3 p at most and of the difference are below 2 u of it, on either side: 4 u = 2 eps.
    np.testing.assert_allclose(after[matrix], expected[matrix], rtol=2 * len(gs) * np.finfo(dtype).eps, atol=0)
    after[matrix] = p[matrix]
    np.testing.assert_array_equal(after, p)


@each_dtype
@given(data=st.data())
def test_the_first_adamw_step_is_as_long_as_the_learning_rate(dtype, data):
    """Bias correction makes m̂ = g and v̂ = g², so p moves by η g/(|g| + ε)."""
    g = data.draw(arrays(dtype, 5, elements=numbers(dtype, 1e-3, 1e6)))
    chosen, lr = data.draw(st.tuples(betas, betas)), data.draw(st.floats(1e-5, 1))
    p = np.zeros_like(g)
    AdamW(5, dtype, matrices=[], betas=chosen).step(p, g, lr, 0.0)
    # Constants and operations of `adamw` above with t = 1 and exact 1 - βᵗ: at most 16 u.
    np.testing.assert_allclose(p, -lr * np.sign(g) * (abs(g) / (abs(g) + 1e-8)), rtol=16 * np.finfo(dtype).eps / 2)


@each_dtype
@given(data=st.data())
def test_without_memory_adamw_forgets(dtype, data):
    """With both βs 0, m is g and v is g² to the bit: the past leaves no trace but in p."""
    _, gs, _, lr, _ = data.draw(runs(dtype))
    optimizer = AdamW(gs[0].size, dtype, matrices=[], betas=(0.0, 0.0))
    for g in gs:
        optimizer.step(np.zeros_like(g), g, lr, 0.0)
    np.testing.assert_array_equal(optimizer.m, gs[-1])
    np.testing.assert_array_equal(optimizer.v, gs[-1] * gs[-1])


def test_sgd_by_hand():
    """μ = ½, η = ¼, λ = 1, all exact in binary; p = 8 in a matrix and 8 outside, gradients 4 and then 2."""
    def trace(**options):
        p, optimizer = np.array([8.0, 8.0]), SGD(2, np.float64, matrices=[slice(0, 1)], **options)
        for g in 4.0, 2.0:
            optimizer.step(p, np.array([g, g]), 0.25, 1.0)
        return p.tolist()

    assert trace() == [8 - (4 + 8) / 4 - (2 + 5) / 4, 8 - 4 / 4 - 2 / 4]
    assert trace(momentum=0.5) == [8 - (4 + 8) / 4 - (4 + 5) / 4, 8 - 4 / 4 - 4 / 4]
    assert trace(momentum=0.5, nesterov=True) == [8 - (6 + 8) / 4 - (4 + 4.5) / 4, 8 - 6 / 4 - 4 / 4]


def test_sgd_without_momentum_keeps_no_vector():
    assert set(SGD(3, np.float32, matrices=[]).state()) == {"step"}


@pytest.mark.parametrize("make", [AdamW, SGD])
def test_float32_is_not_promoted_by_float64_scalars(make):
    """A NumPy float64 learning rate, as a schedule may give, takes the same path as a Python float."""
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((2, 1000)).astype(np.float32)
    a, b = p.copy(), p.copy()
    make(1000, np.float32, matrices=[slice(0, 500)]).step(a, g, 0.1, 0.1)
    make(1000, np.float32, matrices=[slice(0, 500)]).step(b, g, np.float64(0.1), np.float64(0.1))
    np.testing.assert_array_equal(a, b)


def test_a_step_over_many_blocks_keeps_to_its_matrices():
    """With no gradient, exactly the matrices of a vector that spans blocks are pulled, to the last number."""
    n = optim.BLOCK
    size, matrices = 3 * n + 5, [slice(0, 10), slice(11, n), slice(2 * n + 1, 3 * n + 4)]
    p = np.ones(size, np.float32)
    SGD(size, np.float32, matrices=matrices).step(p, np.zeros_like(p), 0.5, 1.0)
    expected = np.ones(size)
    for matrix in matrices:
        expected[matrix] = 0.5
    np.testing.assert_array_equal(p, expected)


def test_matrix_slices_merge_neighbors():
    layer = {"norm": np.zeros(2), "q": np.zeros((2, 3)), "k": np.zeros((1, 3)), "bias": np.zeros(3),
             "conv": np.zeros((1, 2, 2))}
    tree = {"embed": np.zeros((4, 2)), "layers": [layer], "scale": np.zeros(())}
    assert matrix_slices(tree) == [slice(0, 8), slice(10, 19), slice(22, 26)]
    assert matrix_slices({"norm": np.zeros(3)}) == []


@pytest.mark.parametrize(("wrong", "message"), [
    ({"v": None}, "has m, step but AdamW needs m, step, v; resume with"),
    ({"extra": np.zeros(3, np.float32)}, "has extra, m, step, v but AdamW needs"),
    ({"m": np.zeros(4, np.float32)}, r"m in the saved optimizer state is float32\[4\] but AdamW needs float32\[3\]"),
    ({"v": np.zeros(3)}, r"v in the saved optimizer state is float64\[3\] but AdamW needs float32\[3\]"),
    ({"step": np.array(3.0)}, r"step in the saved optimizer state is float64\[\] but AdamW needs int64\[\]")], ids=str)
def test_a_state_of_something_else_is_refused_and_changes_nothing(wrong, message):
    optimizer = AdamW(3, np.float32, matrices=[])
    optimizer.step(np.zeros(3, np.float32), np.ones(3, np.float32), 0.1, 0.0)
    before = {key: a.copy() for key, a in optimizer.state().items()}
    other = {"step": np.array(9), "m": np.full(3, 7, np.float32), "v": np.full(3, 7, np.float32)} | wrong
    with pytest.raises(UserError, match=message):
        optimizer.load({key: a for key, a in other.items() if a is not None})
    for key, a in optimizer.state().items():
        np.testing.assert_array_equal(a, before[key])


@pytest.mark.parametrize(("make", "wrong"), [
    (AdamW, {"betas": (1.0, 0.9)}), (AdamW, {"betas": (0.9, -0.1)}), (AdamW, {"eps": 0.0}), (AdamW, {"eps": 1e-60}),
    (AdamW, {"eps": math.nan}), (SGD, {"momentum": 1.0}), (SGD, {"momentum": -0.1}), (SGD, {"nesterov": True})])
def test_options_outside_their_range_are_refused(make, wrong):
    with pytest.raises(UserError):
        make(3, np.float32, matrices=[], **wrong)


@pytest.mark.parametrize("make", [AdamW, SGD])
def test_a_vector_that_does_not_fit_is_refused(make):
    optimizer, fits = make(3, np.float32, matrices=[]), np.zeros(3, np.float32)
    wide, long, column = np.zeros(3), np.zeros(4, np.float32), np.zeros((3, 1), np.float32)
    for p, g in (fits, wide), (wide, fits), (fits, long), (column, fits):
        with pytest.raises(TypeError, match="the optimizer takes float32"):
            optimizer.step(p, g, 0.1, 0.0)
    assert not fits.any()
    assert optimizer.t == 0
    with pytest.raises(ValueError, match="in order and without overlap"):
        make(3, np.float32, matrices=[slice(2, 4)])


@built
def test_a_kernel_updates_what_it_was_given_or_nothing():
    """It writes to memory that is no array's, or to a copy, if it takes what is short, strided or read-only."""
    def call(**odd):
        arrays = {name: np.ones(4, np.float32) for name in "pgmv"} | odd
        backend.cpu.adamw(**arrays, lr=0.1, decay=0.1, scale=1.0, t=1, betas=(0.9, 0.9), eps=1e-8)

    read_only = np.ones(4, np.float32)
    read_only.setflags(write=False)
    call(g=read_only)
    call(g=np.ones(8, np.float32)[::2])
    for name in "pmv":
        for odd in read_only, np.ones(8, np.float32)[::2], np.ones(3, np.float32), np.ones((4, 1), np.float32):
            with pytest.raises(ValueError, match=r"updated in place|shapes"):
                call(**{name: odd})
        for odd in np.ones(4), None:
            with pytest.raises(TypeError, match="mixed precision"):
                call(**{name: odd})
    for v in read_only, np.ones(3, np.float32):
        with pytest.raises(ValueError, match=r"updated in place|shapes"):
            backend.cpu.sgd(np.ones(4, np.float32), np.ones(4, np.float32), v, lr=0.1, decay=0.1, scale=1.0,
                            momentum=0.5, nesterov=False)
    with pytest.raises(TypeError, match="the kernels take float32 and float64"):
        call(**{name: np.ones(4, np.float16) for name in "pgmv"})
    assert (read_only == 1).all()
