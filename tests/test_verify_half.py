"""Kernels of float16 and bfloat16 beside our op: right ones add in float32, and long sums in their own are found."""
import contextlib
import io

import numpy as np
import pytest

from pyllama.ops import rms_norm
from pyllama.testing import verify as verifying
from pyllama.testing.verify import verify
from tests.test_verify import norm, wrong


def in_single(x, w, *, eps=1e-5):
    """norm, which computes in float32 and rounds its results."""
    y, back = norm(x.astype("float32"), w.astype("float32"), eps=eps)

    def rounded(dy):
        return [np.asarray(g).astype(x.dtype) for g in back(dy.astype("float32"))]
    return np.asarray(y).astype(x.dtype), rounded


def with_sum_in_half(x, w, *, eps=1e-5):
    """in_single, but for the sum of squares, which is added up in the precision of x."""
    total = np.zeros(x.shape[:-1], x.dtype)
    for k in range(x.shape[-1]):
        total = total + x[..., k] * x[..., k]
    r = (1 / np.sqrt(total[..., None].astype("float32") / x.shape[-1] + np.float32(eps))).astype("float32")
    return (x * r * w).astype(x.dtype), in_single(x, w, eps=eps)[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_kernel_of_a_half_precision_is_right_if_it_adds_in_float32(dtype):
    for seed in range(2):
        found = verify(in_single, rms_norm, dtype=dtype, seed=seed)
        assert found, str(found)
        assert {p.verdict for p in found.properties if p.name != "groups"} == {"right"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_long_sum_in_a_half_precision_is_found_by_its_size_alone(dtype, monkeypatch):
    monkeypatch.setattr(verifying, "ATTEMPTS", 0)
    found = verify(with_sum_in_half, rms_norm, dtype=dtype, seed=0, problems=10)
    assert "sizes" in wrong(found), str(found)
    assert wrong(found) <= {"sizes", "scales"}
    assert found["sizes"].mistake.what == "y"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("change", [lambda y, x, w, eps: y + y, lambda y, x, w, eps: -y,
                                    lambda y, x, w, eps: y.astype("float32")])
def test_a_wrong_kernel_of_a_half_precision_is_wrong(change, dtype, monkeypatch):
    monkeypatch.setattr(verifying, "ATTEMPTS", 0)

    def changed(x, w, *, eps=1e-5):
        y, back = in_single(x, w, eps=eps)
        return change(y, x, w, eps), back
    assert "dtypes" in wrong(verify(changed, rms_norm, dtype=dtype, seed=0, problems=5))


def test_a_counterexample_in_bfloat16_runs():
    found = verify(doubled, rms_norm, dtype="bfloat16", seed=0, problems=1, name="tests.test_verify_half:doubled")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found["values"].case, {})
    theirs, ours = printed.getvalue().splitlines()
    assert theirs != ours


def doubled(x, w, *, eps=1e-5):
    y, back = in_single(x, w, eps=eps)
    return y + y, back
