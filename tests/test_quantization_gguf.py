"""Storage formats are those of the package gguf, bit for bit."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from pyllama.quantization import blocks
from tests.quantized import matrices, random

gguf = pytest.importorskip("gguf", reason="needs the package gguf to compare with")
KINDS = {kind: gguf.GGMLQuantizationType[kind.upper()] for kind in blocks.FORMATS}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@given(x=matrices)
def test_the_bits_are_those_of_gguf(kind, x):
    x = np.clip(x, -6e4, 6e4) if kind == "f16" else x
    x = np.where(abs(x) < 1e-35, 0, x)          # the package casts infinities to integers where 1/d overflows
    data = blocks.encode(x, kind)
    np.testing.assert_array_equal(data, gguf.quants.quantize(x, KINDS[kind]).view(np.uint8))
    np.testing.assert_array_equal(blocks.decode(data, kind), gguf.quants.dequantize(data, KINDS[kind]))


@each_kind
@pytest.mark.parametrize("scale", [1e-8, 1e-5, 0.02, 1.0, 1e3])
def test_the_bits_of_many_numbers_are_those_of_gguf(kind, scale):
    x = random(300, 320, scale=scale)
    data = blocks.encode(x, kind)
    np.testing.assert_array_equal(data, gguf.quants.quantize(x, KINDS[kind]).view(np.uint8))
    np.testing.assert_array_equal(blocks.decode(data, kind), gguf.quants.dequantize(data, KINDS[kind]))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@given(bits=arrays(np.uint8, (2, 3 * 34 * 18)))
def test_any_bytes_of_a_file_are_decoded(kind, bits):
    with np.errstate(all="ignore"):                         # NaN and infinities as scales
        np.testing.assert_array_equal(blocks.decode(bits, kind), gguf.quants.dequantize(bits, KINDS[kind]))
