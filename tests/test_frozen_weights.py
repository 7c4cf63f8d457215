"""Every registered op on every backend, with weights that do not train."""
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama.testing.problems import packed
from pyllama.testing.strategies import problems
from tests.gpu import brought, moved
from tests.test_ops import LOW_RUNS, RUNS, forward_on, run


@pytest.mark.parametrize(("op", "on", "dtype"),
                         [case for case in [*((*run, "float64") for run in RUNS), *LOW_RUNS] if case[0].weights],
                         ids=lambda x: getattr(x, "name", x))
@given(data=st.data())
def test_frozen_weights_leave_the_bits_of_all_other_gradients(op, on, dtype, data):
    inputs, options, dy = data.draw(problems(op, dtype))
    weights = [i for i, x in enumerate(inputs) if op.inputs[i].weight and x is not None]
    frozen = data.draw(st.sets(st.sampled_from(weights)))
    inputs = moved(on, [x if x is None else np.array(x, order="C") for x in inputs])     # layouts may order sums
    dy = packed(moved(on, [np.array(d, order="C") for d in op.each(dy)]))
    _, grads = run(op, on, inputs, options, dy)
    with params.adding([inputs[i] for i in frozen], [params.NONE for _ in frozen]):
        _, left = run(op, on, inputs, options, dy)
    for i, (got, want) in enumerate(zip(left, grads, strict=True)):
        if i in frozen:
            assert got is params.NONE or got == 0.0
        elif want is not None:
            np.testing.assert_array_equal(brought(got), brought(want), strict=True)


@pytest.mark.parametrize(("op", "on"), [run for run in RUNS if run[0].saved_for],
                         ids=lambda x: getattr(x, "name", x))
@given(data=st.data())
def test_what_serves_the_gradient_of_a_frozen_weight_alone_is_not_kept(op, on, data):
    """An input with another use beside it is kept: back of the op runs after the inputs have gone."""
    inputs, options, dy = data.draw(problems(op))
    inputs = moved(on, [x if x is None else np.array(x) for x in inputs])
    (weight, place), = op.saved_for.items()
    (_, saved), _ = forward_on(op, on, inputs, options)
    kept = next(i for i, x in enumerate(inputs) if x is saved[place])
    gone = weakref.ref(saved[place])
    del saved
    with params.adding([inputs[weight]], [params.NONE]), backend.use(on):
        _, back = op(*inputs, **options)
        inputs[kept] = None
        assert gone() is None
        back(packed(moved(on, list(op.each(dy)))))
