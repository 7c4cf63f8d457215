"""gradcheck looks where mistakes hide: other values, other layouts, another dy; it names what passes must not do."""
import numpy as np
import pytest

from pyllama.testing import gradcheck, points

RNG = np.random.default_rng(0)
X, W, ONES = RNG.standard_normal((3, 4)), RNG.standard_normal(4), np.ones(4)


def checked(func, inputs, **options):
    return gradcheck(func, inputs, raise_exception=False, seed=0, budget=None, **options)


def where(report):
    """The point that the wrong gradient is shown at."""
    pair, = (pair for pair in report.pairs if pair.wrong)
    return pair.where


# --- values -----------------------------------------------------------------------------------------------------------

def scaled(x, w):
    return x * w, (x, w)


def w_forgotten(dy, x, w):
    return dy, (dy * x).sum(0)


def test_a_weight_of_ones_does_not_hide_a_missing_factor():
    report = checked(scaled, [X, ONES], backward=w_forgotten, saved=True)
    assert where(report) == "random w"
    assert any("w is not constant" in sentence for sentence in report.pairs[-1].diagnoses)
    assert checked(scaled, [X, ONES], backward=w_forgotten, saved=True, other_values=False)


@pytest.mark.parametrize(("value", "wrong"), [(0.0, lambda dy, x: 0 * dy), (1.0, lambda dy, x: 2 * dy)])
def test_inputs_of_0_and_1_do_not_hide_a_mistake(value, wrong):
    """OpenMDAO's POEM 28: these two hide the most.  The derivative of x² is 0 at 0, and 2 at 1."""
    x = np.full((2, 3), value)
    assert checked(np.square, [x], backward=lambda dy, x: 2 * x * dy)
    assert where(checked(np.square, [x], backward=wrong)) == "random w"
    x[0, 0] = 1 - value                             # no constant array, but 0 and 1 still hide a gradient of x (1 - x)
    wrong = lambda dy, x: (1 - 2 * x + 0 * dy) * dy * (1 + x * (1 - x))                             # noqa: E731
    assert where(checked(lambda x: x * (1 - x), [x], backward=wrong)) == "away from 0 and 1"


def test_the_call_that_repeats_a_check_has_all_that_was_given():
    report = checked(scaled, [X, W], backward=w_forgotten, saved=True)
    assert report.replay == "gradcheck(scaled, inputs, backward=w_forgotten, saved=True, budget=None, seed=0)"
    assert gradcheck(np.square, [X], backward=lambda dy, x: 2 * x * dy, seed=0).replay.endswith("=backward, seed=0)")


def test_repeated_ids_show_what_a_permutation_hides():
    def gather(table, ids):
        return table[ids], (ids, table.shape)

    def last_one_wins(dy, ids, shape):
        d = np.zeros(shape)
        d[ids] = dy
        return d, None

    report = checked(gather, [X, np.array([2, 0, 1])], backward=last_one_wins, saved=True)
    assert where(report) == "repeated ids"


@pytest.mark.parametrize("x", [np.array([0.0, 0.5, 1.0]), np.array([0.0, -2.0]), np.array([1.0, 2.0, 5.0]),
                               np.array([0.0, np.inf, 3.0])])
def test_other_values_stay_in_the_domain_and_leave_0_and_1(x):
    for seed in range(20):
        near = points.away(x, np.random.default_rng(seed))
        assert not np.isin(near, [0, 1]).any()
        assert (np.sign(near) == np.sign(np.where(x == 0, np.nanmax(np.sign(x)) or np.sign(x.min()), x))).all()
        assert (near <= 1).all() >= (x <= 1).all()
        assert (near >= 1).all() >= (x >= 1).all()
        assert (np.isinf(near) == np.isinf(x)).all()


def test_a_point_where_the_function_is_not_defined_is_left_out_and_named():
    def strict(x):
        if not (x == 0.25).all():
            assert np.iscomplexobj(x) or np.abs(x - 0.25).max() < 0.06, "only near a quarter"
        return np.sqrt(x), lambda dy: dy / 2 / np.sqrt(x)

    report = checked(strict, [np.full(3, 0.25)])
    assert report
    assert any("'random w' was left out: AssertionError: only near a quarter (line " in note for note in report.notes)


# --- layouts ----------------------------------------------------------------------------------------------------------

def in_memory(a):
    """The numbers as they lie in memory, from the first one on: what a kernel sees that ignores strides."""
    start = a[(0,) * a.ndim:] if not a.ndim else a
    return np.lib.stride_tricks.as_strided(start, a.shape, np.empty(a.shape, a.dtype).strides)


def test_a_dy_that_is_read_as_contiguous_is_found():
    """unsloth PR #10617: right for the dy of a loss, wrong for the slice of one."""
    room = np.zeros((200, 200))

    def backward(dy, x):
        room[:2, :12] = 0
        return in_memory(dy) * np.cos(x)

    report = checked(np.sin, [X], backward=backward)
    assert where(report) in points.DY_LAYOUTS
    assert any("dy read as contiguous" in sentence for sentence in report.pairs[-1].diagnoses)


def test_an_input_that_is_read_as_contiguous_is_a_fault():
    report = checked(lambda x: (np.sin(in_memory(x)), lambda dy: dy * np.cos(x)), [X])
    assert {fault.kind for fault in report.faults} == {"layout"}
    assert all("returns another y for " in fault.sentence for fault in report.faults)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_input_that_is_read_as_contiguous_is_a_fault_in_low_precision(dtype, alone):
    """A thousand roundings of float16 are as large as the numbers themselves."""
    def f(x):
        assert x.dtype == dtype or not alone, "low precision only"
        return 2 * in_memory(x), lambda dy: 2 * dy

    report = checked(f, [(1 + X * X).astype(dtype)])
    assert {fault.kind for fault in report.faults} == {"layout"}


def test_a_function_may_refuse_a_layout():
    def f(x):
        if not x.flags.c_contiguous:
            raise ValueError("contiguous arrays only")
        return np.sin(x), lambda dy: dy * np.cos(x)

    report = checked(f, [X])
    assert report
    assert any("contiguous arrays only" in note for note in report.notes)


# --- dy ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("back", [lambda dy: dy * abs(dy), lambda dy: dy + 1e-3, lambda dy: np.sign(dy),
                                  lambda dy: np.ones_like(dy)])
def test_a_gradient_that_is_not_linear_in_dy_is_found(back):
    report = checked(lambda x: (x * 1, back), [X])
    assert report.pairs[0].wrong
    assert ("not linear in dy" in [fault.kind for fault in report.faults]) == back(np.zeros(1)).any()


def test_back_must_give_zero_for_zero():
    report = checked(lambda x: (x * 1, lambda dy: dy + (0 if dy.any() else 1)), [X])
    assert [fault.kind for fault in report.faults] == ["not linear in dy"]


def test_a_single_wrong_entry_of_many_is_found_and_named():
    def backward(dy, x):
        dx = dy * np.cos(x)
        dx[7, 33] *= 1 + 1e-6
        return dx

    pair = checked(np.sin, [RNG.standard_normal((16, 64))], backward=backward).pairs[0]
    assert pair.wrong
    assert pair.index == (7, 33)


# --- contracts --------------------------------------------------------------------------------------------------------

def faults(func):
    return [fault.kind for fault in checked(func, [X]).faults]


def test_what_passes_change_is_named():
    def input_in_forward(x):
        x *= 2
        return x.copy(), lambda dy: 2 * dy

    def dy_in_back(x):
        def back(dy):
            if dy.flags.writeable:
                dy *= 2
            return dy / 2 if dy.flags.writeable else dy * 1
        return x * 1, back

    def y_in_back(x):
        y = np.exp(x)

        def back(dy):
            y[:] *= dy
            return y.copy()
        return y, back

    assert set(faults(input_in_forward)) == {"input mutated"}
    assert set(faults(dy_in_back)) == {"dy mutated"}
    assert set(faults(y_in_back)) >= {"y mutated"}


def test_a_gradient_is_judged_at_the_inputs_as_they_were_before_a_pass_changed_them():
    def f(x):
        slope = 3 * x * x
        y = x ** 3
        x *= 2
        return y, lambda dy: slope * dy

    report = checked(f, [X])
    assert [fault.kind for fault in report.faults] == ["input mutated"]
    assert not any(pair.wrong for pair in report.pairs), report


def test_a_function_that_returns_its_changed_input_is_not_random():
    """The input gets its old numbers back, and y must not with it."""
    def doubled(x):
        x *= 2
        return x, lambda dy: 2 * dy

    report = checked(doubled, [X])
    assert [fault.kind for fault in report.faults] == ["input mutated"]
    assert not any(pair.wrong for pair in report.pairs), report


def test_a_back_that_serves_the_last_call_alone_is_a_note():
    last = {}

    def f(x):
        last["x"] = x
        return np.sin(x), lambda dy: np.cos(last["x"]) * dy

    report = checked(f, [X])
    assert report
    assert any("another gradient of x once f was called again" in note for note in report.notes)
    assert not checked(lambda x: (np.sin(x), lambda dy: np.cos(x) * dy), [X]).notes


@pytest.mark.parametrize("seed", range(4))
def test_a_small_entry_is_not_blamed_on_the_layout_at_which_it_was_first_seen(seed):
    """Along a random direction large entries hide it, but not at every point."""
    scale = np.array([1e6, 1.0, 1.0, 1.0, 1.0, 1e-6])

    def last_forgotten(dy, x):
        return dy * scale * (scale > 1e-6)

    report = gradcheck(lambda x: x * scale, [RNG.standard_normal(6)], backward=last_forgotten, seed=seed, budget=None,
                       raise_exception=False)
    assert "Wrong only at x[5]" in report.pairs[0].diagnoses[0]


def test_what_is_kept_from_the_first_call_is_not_blamed_on_zeros_and_ones():
    kept = {}

    def f(x):
        first = kept.setdefault("x", x.copy())
        return x ** 3, lambda dy: 3 * first ** 2 * dy

    report = checked(f, [X])
    assert "right as given, wrong near them" in report.pairs[0].diagnoses[0]


def test_a_gradient_made_in_place_of_dy_is_right_but_dy_is_mutated():
    def f(x):
        def back(dy):
            dy *= 2 * x
            return dy
        return x * x, back

    report = checked(f, [X])
    assert [fault.kind for fault in report.faults] == ["dy mutated"]
    assert not any(pair.wrong for pair in report.pairs)


def test_an_output_that_is_the_input_is_a_note():
    report = checked(lambda x: (x, lambda dy: dy), [X])
    assert report
    assert any("shares memory with x" in note for note in report.notes)


def test_back_may_be_called_twice():
    def f(x):
        slope = [2.0]
        return 2 * x, lambda dy: dy * slope.pop() if slope else 0 * dy

    assert "back runs once" in faults(f)
    assert "back runs once" not in faults(lambda x: (2 * x, lambda dy: 2 * dy))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_second_call_of_back_that_is_off_by_half_is_a_fault(dtype):
    def f(x):
        assert x.dtype == dtype
        times = [3, 2]
        return 2 * x, lambda dy: dy * x.dtype.type(times.pop() if times else 2)

    assert "back runs once" in [fault.kind for fault in checked(f, [X.astype(dtype)]).faults]
