"""Schedules: bounds, shape, transitions and ends of all of them, and each compared with its formula."""
import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.training.loop import Settings
from pyllama.training.schedule import SCHEDULES

EPS = 2.0 ** -52
FALLING = ["cosine", "linear", "wsd"]
each = pytest.mark.parametrize("name", SCHEDULES)
falling = pytest.mark.parametrize("name", FALLING)


@st.composite
def options(draw):
    lr = draw(st.floats(1e-6, 10))
    return {"learning_rate": lr, "min_lr": draw(st.one_of(st.sampled_from([0.0, lr]), st.floats(0, lr))),
            "warmup_steps": draw(st.integers(0, 40)), "max_steps": draw(st.integers(1, 60)),
            "decay_steps": draw(st.integers(0, 70))}


def rates(name, chosen):
    """The rates of every step of the run, and of some after its end."""
    return [SCHEDULES[name](step, **chosen) for step in range(chosen["max_steps"] + chosen["warmup_steps"] + 3)]


def test_the_table_is_complete():
    assert set(SCHEDULES) == {"constant", "inverse_sqrt", *FALLING}
    assert all(function.__name__ == name for name, function in SCHEDULES.items())


@each
@given(chosen=options())
def test_warm_up_rises_in_equal_steps_from_one_of_them_to_the_full_rate(name, chosen):
    lr, warmup = chosen["learning_rate"], chosen["warmup_steps"]
    for step, rate in enumerate(rates(name, chosen)[:warmup]):
        assert rate == pytest.approx(lr * (step + 1) / warmup, rel=2 * EPS)         # one quotient, one product
    if warmup:
        assert rates(name, chosen)[warmup - 1] == lr


@each
@given(chosen=options())
def test_after_warm_up_the_rate_never_rises_nor_leaves_its_bounds(name, chosen):
    lr, warmup = chosen["learning_rate"], chosen["warmup_steps"]
    after = rates(name, chosen)[warmup:]
    assert all(chosen["min_lr"] <= rate <= lr for rate in after)
    # The weighted mean of two numbers up to lr takes 1 - w, two products and a sum, half an ulp of lr each; the cosine
    # adds an ulp.  Two neighbors: at most 6 EPS lr.
    assert all(b <= a + 6 * EPS * lr for a, b in itertools.pairwise(after))
    if warmup < chosen["max_steps"]:
        assert after[0] == lr


@falling
@given(chosen=options())
def test_the_end_is_min_lr_and_the_last_step_of_the_run_is_still_above_it(name, chosen):
    lr, low, warmup, end = (chosen[k] for k in ("learning_rate", "min_lr", "warmup_steps", "max_steps"))
    assert all(SCHEDULES[name](step, **chosen) == low for step in range(max(end, warmup), end + warmup + 3))
    if low < lr * (1 - 1e-3) and warmup < end:          # at w <= 1 - 1/60 the gap to min_lr is far above rounding
        assert SCHEDULES[name](end - 1, **chosen) > low


@given(chosen=options(), step=st.integers(0, 1000))
def test_constant_stays_past_the_end(chosen, step):
    assert SCHEDULES["constant"](chosen["warmup_steps"] + step, **chosen) == chosen["learning_rate"]


@falling
@given(chosen=options())
def test_no_jump_at_any_seam(name, chosen):
    """Neighboring steps differ by at most the greatest slope of the formulas."""
    lr, low, warmup, end, decay = (chosen[k] for k in
                                   ("learning_rate", "min_lr", "warmup_steps", "max_steps", "decay_steps"))
    assume(warmup < end and decay >= 1)                 # else the run ends, by request, before it comes down
    span = end - max(warmup, end - decay) if name == "wsd" else end - warmup
    fall = (lr - low) / span * (math.pi / 2 if name == "cosine" else 1)           # max |d/df (1 - cos πf)/2| = π/2
    all_rates = rates(name, chosen)
    rises = [(lr / warmup if step < warmup else fall) + 8 * EPS * lr for step in range(len(all_rates))]
    assert all(abs(all_rates[i] - all_rates[i - 1]) <= rises[i] for i in range(1, len(all_rates)))


@given(chosen=options())
def test_cosine_agrees_with_the_half_angle_form(chosen):
    lr, low, warmup, end = (chosen[k] for k in ("learning_rate", "min_lr", "warmup_steps", "max_steps"))
    for step in range(warmup, end):
        expected = lr - (lr - low) * math.sin(math.pi / 2 * (step - warmup) / (end - warmup)) ** 2
        # Both forms: some six roundings of numbers up to lr, and π/2 · EPS in the angle where the slope is at most lr.
        assert SCHEDULES["cosine"](step, **chosen) == pytest.approx(expected, rel=0, abs=10 * EPS * lr)


@given(chosen=options())
def test_linear_and_wsd_fall_in_equal_steps(chosen):
    lr, low, warmup, end, decay = (chosen[k] for k in
                                   ("learning_rate", "min_lr", "warmup_steps", "max_steps", "decay_steps"))
    for name, start in ("linear", warmup), ("wsd", max(warmup, end - decay)):
        for step in range(warmup, end):
            fallen = (lr - low) * max(0, step - start) / (end - start) if end > start else 0
            assert SCHEDULES[name](step, **chosen) == pytest.approx(lr - fallen, rel=0, abs=6 * EPS * lr)


@given(chosen=options())
def test_inverse_sqrt_halves_the_way_whenever_the_steps_are_four_times_as_many(chosen):
    """rate - min_lr is as 1/√step from the warm-up's end on, past the run's end too; some 6 roundings up to lr."""
    lr, low, first = chosen["learning_rate"], chosen["min_lr"], max(chosen["warmup_steps"], 1)
    for times in range(5):
        rate = SCHEDULES["inverse_sqrt"](first * 4 ** times, **chosen)
        assert rate - low == pytest.approx((lr - low) / 2 ** times, rel=0, abs=6 * EPS * lr)


@each
def test_a_run_of_one_step_uses_the_full_rate(name):
    options = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_steps": 0, "max_steps": 1, "decay_steps": 1}
    assert SCHEDULES[name](0, **options) == 1.0


@each
@pytest.mark.parametrize("wrong", [
    {"step": -1}, {"learning_rate": 0.0}, {"learning_rate": -1.0}, {"learning_rate": math.nan},
    {"learning_rate": math.inf}, {"min_lr": -0.1}, {"min_lr": 1.1}, {"min_lr": math.nan}, {"warmup_steps": -1},
    {"max_steps": 0}, {"decay_steps": -1}], ids=str)
def test_a_bad_value_is_named(name, wrong):
    options = {"step": 0, "learning_rate": 1.0, "min_lr": 0.1, "warmup_steps": 1, "max_steps": 2, "decay_steps": 1}
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} is .*; it must be "):
        SCHEDULES[name](**options | wrong)


@pytest.mark.parametrize(("max_steps", "warmup"), [(1, 0), (9, 0), (29, 2), (999, 99), (1000, 100), (100_000, 100)])
def test_by_default_a_short_run_has_a_short_warmup(max_steps, warmup):
    """It belongs to the number of steps, also if that is set later, as by the number of epochs."""
    settings = replace(Settings(), max_steps=max_steps)
    assert settings.warmup == warmup
    assert max(settings.rate(step) for step in range(max_steps)) == settings.learning_rate
    assert settings.notes == ()


def test_a_run_that_ends_in_its_warmup_is_noted():
    note, = Settings(max_steps=29, warmup_steps=100).notes
    assert "at 29% of learning_rate: warmup_steps is 100 and max_steps 29" in note
    assert Settings(max_steps=29, warmup_steps=29).notes == ()
