"""A Hypothesis strategy for the random problems of pyllama.testing, which then shrink."""
from hypothesis import strategies as st

from pyllama.op import between
from pyllama.testing import problem


@st.composite
def problems(draw, op, dtype="float64"):
    def choose(values):
        if isinstance(values, between):
            number = st.integers if isinstance(values.low, int) else st.floats
            return draw(number(values.low, values.high))
        return draw(st.sampled_from(values))

    return problem(op, choose, dtype)
