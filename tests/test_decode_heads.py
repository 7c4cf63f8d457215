"""Heads of many widths: one query takes in values some vectors at a time, and what is left of a vector."""
from dataclasses import replace

import numpy as np
import pytest

from pyllama import backend
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from tests.test_decode import CONTEXT, V, Writer, follows, in_halves, near, rounding, texts

pytestmark = pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
# Of 16 numbers in a vector, or of 8 in float64: 1 to 4 vectors together, none or 4 or 8 numbers left, and once 4 + 2.
WIDTHS = pytest.mark.parametrize("width", [16, 24, 40, 56, 64, 100])


def wide(width, dtype, batch):
    """A small LLaMA with wide heads."""
    shape = Dimensions(vocab_size=V, context=CONTEXT, head="lm", width=8, layers=1, heads=2, dropout=0.0)
    return Writer(replace(MODELS["llama"].config.small(shape), head_dim=width), batch, dtype)


def one_by_one(session, new):
    """The scores [N T V] after each token of N texts, in T calls."""
    return np.stack([session.extend([[text[t]] for text in new]).copy() for t in range(len(new[0]))], axis=1)


@WIDTHS
def test_a_token_attends_by_wide_heads(width):
    writer = wide(width, "float64", batch=2)
    new = np.random.default_rng(4).integers(0, V, (2, 11)).tolist()
    for row, found in enumerate(one_by_one(writer.session(), new)):
        near(found, writer.scores(new[row], row))


@WIDTHS
def test_a_token_attends_to_halves_by_wide_heads(width):
    writer = wide(width, "float32", batch=20)
    new = texts(writer)
    found, exact = one_by_one(writer.session(cache="f16"), new), [writer.scores(text, 0) for text in new]
    with rounding(in_halves):
        follows(found, [writer.scores(text, 0) for text in new], exact)
