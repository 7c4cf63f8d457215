"""bench/seeds.py: what the table says about the runs.  Nothing is trained for long."""
import numpy as np
import pytest

from bench import seeds
from bench.sizes import SIZES
from pyllama.text.tokens import Tokens


def runs(float32, bfloat16):
    return [{"float32": a, "bfloat16": b, "difference": b - a} for a, b in zip(float32, bfloat16, strict=True)]


@pytest.mark.parametrize(("bfloat16", "within"), [([2.0, 2.5, 3.2], True), ([3.1, 3.1, 3.1], False),
                                                  ([1.9, 1.9, 1.9], False)])
def test_the_mean_of_bfloat16_is_held_against_the_least_and_the_largest_of_float32(bfloat16, within):
    row = seeds.summary("T", 10, runs([2.0, 2.5, 3.0], bfloat16))
    assert (row["least"], row["largest"], row["deviation"], row["within"]) == (2, 3, 0.5, within)
    assert row["difference"] == pytest.approx(np.mean(bfloat16) - 2.5)
    assert row["error"] == pytest.approx(np.std(np.subtract(bfloat16, [2, 2.5, 3]), ddof=1) / 3 ** 0.5)


def test_both_precisions_are_trained_from_the_same_weights_on_the_same_text():
    size = SIZES["tiny"]
    ids = np.random.default_rng(0).integers(size.V, size=2000).astype(np.uint16)
    losses = [seeds.final_losses(size, Tokens(ids, np.array([0]), np.array([len(ids)])), steps=1, seed=seed)
              for seed in (0, 1)]
    for one, other in (losses, losses[::-1]):
        assert 0 < abs(one["bfloat16"] - one["float32"]) < abs(one["float32"] - other["float32"])
        assert one["weights"] != one["bfloat16"]
