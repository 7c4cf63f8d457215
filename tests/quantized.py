"""Matrices to be stored in few bits."""
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

LARGEST = 2.0**18                                           # q4_0's scale of it is in the range of float16
numbers = st.floats(-LARGEST, LARGEST, width=32) | st.sampled_from([0.0, -0.0, 1e-7, 1.0, -1.0, 0.5])
matrices = st.integers(1, 3).flatmap(lambda E: st.integers(1, 3).flatmap(
    lambda N: arrays(np.float32, (E, 32 * N), elements=numbers)))


def random(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)
