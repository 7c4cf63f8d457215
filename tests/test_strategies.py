"""Strategies: what they draw has the declared properties, what they may draw is drawn, and it shrinks to 0, 1 and ½."""
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

from pyllama import ops
from pyllama.op import between
from pyllama.shapes import signature
from pyllama.testing import strategies
from pyllama.testing.layouts import LAYOUTS
from pyllama.testing.problems import EDGES
from pyllama.testing.strategies import DTYPES, arrays

pytest_plugins = ["pytester"]

LINE = "x[... D], ids[... T]<V, table[V D], b[D]? -> y[... D]"
many = settings(max_examples=2000, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink],
                suppress_health_check=[*HealthCheck])


def smallest(strategy, predicate=lambda value: True):
    return find(strategy, predicate, settings=many)


def reached(strategy, features, count=300):
    """The features of what is drawn."""
    found = set()

    @settings(many, max_examples=count)
    @given(strategy)
    def collect(value):
        found.update(features(value))

    collect()
    return found


@settings(many, max_examples=200)
@given(arrays(LINE))
def test_arrays_fit_their_line(inputs):
    x, ids, table, b = inputs
    V, D = table.shape
    assert x.shape[-1] == D
    assert x.shape[:-1] == ids.shape[:-1]
    assert ids.dtype == np.int64
    assert ((ids >= 0) & (ids < V)).all()
    assert b is None or b.shape == (D,)
    assert {a.dtype for a in (x, table)} == {np.dtype(float)}
    assert all(np.isfinite(a).all() for a in inputs if a is not None)


def test_arrays_reach_each_kind_of_size():
    def features(inputs):
        x, ids, _, b = inputs
        yield f"{x.ndim} axes"
        yield f"D = {x.shape[-1]}"
        yield "left out" if b is None else "given"
        if not x.size:
            yield "empty rows"
        if not ids.shape[-1]:
            yield "no ids"
        if ids.size > len({*ids.flat}):
            yield "repeated ids"

    assert reached(arrays(LINE), features) >= {
        "1 axes", "2 axes", "3 axes", "left out", "given", "empty rows", "no ids", "repeated ids",
        *[f"D = {n}" for n in (1, 2, 3, 4, 5, *EDGES)],
    }


def test_arrays_reach_each_eighth_and_numbers_between_them():
    def features(inputs):
        x, = inputs
        eighths = x[(x * 8 == np.round(x * 8)) & (np.abs(x) <= 2)]
        yield from eighths.tolist()
        if x.size and eighths.size < x.size / 2:
            yield "between"

    found = reached(arrays("x[N] -> y[N]"), features)
    assert found >= {k / 8 for k in range(-16, 17)} | {"between"}


@pytest.mark.parametrize("shape", ["N D", "N 64"])
def test_no_two_rows_of_a_large_array_repeat_each_other(shape):
    """A function that mixes up rows would not be found out otherwise."""
    x, = smallest(arrays(f"x[{shape}] -> y[N]", most=4096), lambda inputs: different_rows(inputs[0]))
    assert len(x) >= 15


def different_rows(x):
    """Has x 15 rows of at least 30 numbers?  All rows but those of zeros differ."""
    if len(x) < 15 or x.shape[1] < 30 or np.count_nonzero(x) < x.size * 3 / 4:
        return False
    assert len({row.tobytes() for row in x}) == len(x)
    return True


@settings(many, max_examples=200)
@given(arrays("x[N], p[N], w[N] -> y[N]", x=between(0.5, 2.0), p=between(0.0, 1.0), w=between(-0.01, 0.01)))
def test_numbers_stay_within_their_ranges(inputs):
    x, p, w = inputs
    assert ((x >= 0.5) & (x <= 2)).all()
    assert ((p >= 0) & (p <= 1)).all()
    assert (abs(w) <= 0.01).all()


@settings(many, max_examples=200)
@given(arrays("x[N], ids[M]<N -> y[M]"))
def test_ids_below_a_number_of_rows_have_a_row_to_choose(inputs):
    x, ids = inputs
    assert ((ids >= 0) & (ids < len(x))).all()


def test_a_narrow_range_is_filled():
    def features(inputs):
        return np.round(inputs[0] / 0.0025).astype(int).tolist()

    found = reached(arrays("x[N] -> y[N]", x=between(-0.01, 0.01)), features)
    assert found == {*range(-4, 5)}


@pytest.mark.parametrize(("line", "message"), [
    ("x[N]] -> y[N]", "'x[N]]' is not a name with its axes in brackets"),
    ("x[N], w[N -> y[N]", "'w[N' is not a name with its axes in brackets"),
    ("x[N], b[N]?, w[N] -> y[N]", "only the last inputs may be optional"),
])
def test_a_line_that_is_none_is_refused(line, message):
    with pytest.raises(ValueError, match="is not a shape line") as caught:
        smallest(arrays(line))
    assert message in str(caught.value)


def test_a_range_for_no_input_is_refused():
    with pytest.raises(TypeError, match="has no floating input 'ids'; give ranges for its inputs"):
        smallest(arrays("x[N], ids[N]<V -> y[N]", ids=between(0, 1)))


# What a failing test shows.


def test_a_sum_that_is_positive_shrinks_to_a_one():
    x, w = smallest(arrays("x[... D], w[D] -> y[... D]"), lambda inputs: inputs[0].sum() > 0)
    assert x.tolist() == [1]
    assert w.tolist() == [0]


def test_a_fraction_shrinks_to_a_half():
    x, = smallest(arrays("x[N] -> y[N]"), lambda inputs: (inputs[0] % 1 != 0).any())
    assert x.tolist() == [0.5]


def test_an_order_of_numbers_shrinks_to_zero_and_one():
    x, = smallest(arrays("x[N D] -> y[N D]"), lambda inputs: inputs[0].shape[-1] > 1 and np.ptp(inputs[0]) > 0)
    assert x.shape in {(1, 2), (2, 2)}
    assert sorted({*x.flat}) == [0, 1]


def test_a_large_array_shrinks_to_few_entries():
    """Whatever the size at which a failure is met first: a product of sums needs one entry each."""
    x, w = smallest(arrays("x[N D], w[D] -> y[N]"), lambda inputs: np.abs(inputs[0] @ inputs[1]).sum() > 0.1)
    assert x.tolist() == [[1]]
    assert w.tolist() == [1]


def test_ids_shrink_to_zeros():
    ids, = smallest(arrays("ids[T]<V -> y[T]"), lambda inputs: len(inputs[0]) > 2)
    assert ids.tolist() == [0, 0, 0]


# Cotangents.


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cotangent_has_the_form_of_y(dtype):
    y = np.zeros((2, 3), strategies.named(dtype)), 0.5, np.zeros((), np.float32)

    def features(dys):
        assert isinstance(dys, tuple)
        assert [np.shape(dy) for dy in dys] == [(2, 3), (), ()]
        assert [type(dy) for dy in dys] == [np.ndarray, np.float64, np.ndarray]
        assert [dy.dtype for dy in dys] == [y[0].dtype, np.float64, np.float32]
        yield from ("zero" if not np.any(dy) else "constant" if np.ptp(dy) == 0 else "any" for dy in dys)

    assert reached(strategies.cotangents(y), features) == {"zero", "constant", "any"}


# Masks.


def test_masks_reach_each_kind():
    def features(mask):
        assert (mask.shape, mask.dtype) == ((2, 3, 4), np.bool_)
        lengths = mask.sum(axis=-1, keepdims=True)
        padded = (mask == (np.arange(4) < lengths)).all()
        yield "all" if mask.all() else "none" if not mask.any() else "some"
        if (mask == np.tri(3, 4, 1, dtype=bool)).all():
            yield "causal"
        elif padded and (lengths == lengths[:, :1]).all() and not mask.all():
            yield "padding"
        elif not padded:
            yield "random"
        if not mask.any(axis=-1).all():
            yield "a query without a key"

    assert reached(strategies.masks(2, 3, 4), features) == {
        "all", "none", "some", "causal", "padding", "random", "a query without a key"}


def test_the_last_query_of_a_causal_mask_attends_to_the_last_key():
    mask = smallest(strategies.masks(2, 4), lambda mask: not mask[0, -1] and mask[-1].all() and mask[0, :3].all())
    assert mask.tolist() == [[True, True, True, False], [True] * 4]


# Tokens.


def test_token_batches_reach_repeats_and_ignored_labels():
    def features(batch):
        ids, labels, V, ignored = batch
        assert ids.shape == labels.shape
        assert ids.ndim == 2
        assert ((ids >= 0) & (ids < V)).all()
        kept = labels != ignored
        assert ((labels[kept] >= 0) & (labels[kept] < V)).all()
        if not ids.size:
            yield "empty"
        elif len({*ids.flat}) < ids.size:
            yield "repeats"
        if ids.size > 3:
            yield "none ignored" if kept.all() else "some ignored" if kept.any() else "all ignored"

    assert reached(strategies.token_batches(), features) == {
        "empty", "repeats", "none ignored", "some ignored", "all ignored"}


# Attention.


@pytest.mark.parametrize("flat", [False, True])
def test_grouped_query_heads_share_keys(flat):
    def features(qkv):
        q, k, v = qkv
        assert k.shape == v.shape
        if flat:
            (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
            assert H % G == 0
            R = H // G
        else:
            (B, G, R, T, K), S = q.shape, k.shape[2]
            assert k.shape[1] == G
        assert (k.shape[0], k.shape[-1]) == (B, K)
        yield from (f"R = {R}", f"T {'<>='[(T > S) + 2 * (T == S)]} S", *["empty"] * (0 in (B, T, S)))

    found = reached(strategies.grouped_query(flat=flat), features)
    assert found == {"R = 1", "R = 2", "R = 3", "T < S", "T = S", "T > S", "empty"}


# Layouts and dtypes.


def test_each_layout_is_reached():
    x = np.arange(6.0).reshape(2, 3)
    assert reached(strategies.layouts(x), lambda y: [(y.strides, y.flags.writeable, y.flags.aligned)]) == {
        (y.strides, y.flags.writeable, y.flags.aligned) for y in (lay_out(x) for lay_out in LAYOUTS.values())}


@settings(many, max_examples=200)
@given(strategies.layouts(arrays("x[N D] -> y[N D]").map(lambda inputs: inputs[0])))
def test_layouts_take_a_strategy(x):
    assert x.ndim == 2


@pytest.mark.parametrize("name", DTYPES)
def test_each_dtype_is_reached_and_holds_eighths_exactly(name):
    dtype = smallest(strategies.dtypes(), lambda dtype: dtype == strategies.named(name))
    x, = smallest(arrays("x[N] -> y[N]", dtype), lambda inputs: 0.125 in inputs[0].astype(float))
    assert x.dtype == dtype
    assert 0.125 in x.astype(float).tolist()


def test_bfloat16_is_that_of_ml_dtypes():
    assert strategies.named("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    assert strategies.named(np.dtype(ml_dtypes.bfloat16)) == np.dtype(ml_dtypes.bfloat16)


# Problems of ops.


@pytest.mark.parametrize("op", [ops.rms_norm, ops.cross_entropy, ops.attention, ops.add_rms_norm, ops.linear],
                         ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_problems_are_calls_of_their_op(op, dtype):
    counts = set()

    @settings(many, max_examples=200)
    @given(strategies.problems(op, dtype))
    def call(problem):
        inputs, options, dy = problem
        op.check(signature(inputs))
        _, back = op(*inputs, **options)
        back(dy)
        assert {d.dtype for d in op.each(dy)} == {np.dtype(dtype)}
        counts.add(len(inputs))
        for name, value in options.items():
            values = op.options[name]
            assert values.low <= value <= values.high if isinstance(values, between) else value in values

    call()
    required = sum(not x.optional for x in op.inputs)
    assert counts == {*range(required, len(op.inputs) + 1)}


def test_problems_reach_both_ends_of_an_option_and_its_middle():
    values = ops.rms_norm.options["eps"]
    found = reached(strategies.problems(ops.rms_norm), lambda problem: [problem.options["eps"]], count=1000)
    assert {values.low, values.high} <= found
    assert sum(values.low < eps < values.high for eps in found) > 20


def test_problems_ignore_some_labels():
    def features(problem):
        labels, ignored = problem.inputs[1], problem.options["ignore_index"]
        if labels.size > 3:
            yield (labels == ignored).any(), (labels == ignored).all()

    assert reached(strategies.problems(ops.cross_entropy), features) == {
        (False, False), (True, False), (True, True)}


# A seed means the same in every run.


def test_what_is_drawn_does_not_depend_on_the_modules_that_are_loaded(pytester, monkeypatch):
    """Hypothesis draws constants of the loaded modules, but none of these is among what we draw from."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makepyfile(constants=f"A = {[*range(100, 30000, 37)]}")
    pytester.makepyfile(more_constants=f"A = {[(i / 7, chr(i + 40), bytes([i]) * i) for i in range(1, 70)]}")
    pytester.makepyfile(draw="""
        import sys
        from zlib import crc32
        from hypothesis import HealthCheck, given, seed, settings
        from pyllama.op import between
        from pyllama.testing import strategies
        if len(sys.argv) > 1:
            import constants, more_constants

        @strategies.st.composite
        def numbers(draw):
            return strategies.decisions(draw)(between(0, 30000))

        @seed(0)
        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=[*HealthCheck])
        @given(numbers(), strategies.arrays("x[... D], ids[T]<V, w[D]? -> y[... D]", x=between(0.0, 9.0)))
        def show(number, inputs):
            print(number, *[x is not None and (x.shape, crc32(x)) for x in inputs])

        show()
    """)
    runs = [pytester.runpython_c(f"import sys; sys.argv = {argv}; sys.path.insert(0, '.'); import draw").outlines
            for argv in (["draw"], ["draw", "constants"])]
    assert len(runs[0]) == 200
    assert runs[0] == runs[1]
