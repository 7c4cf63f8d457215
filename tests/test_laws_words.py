"""Laws of the losses of word vectors."""
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from pyllama.ops import glove, negative_sampling
from tests.laws import close, law

several = st.integers(1, 5)


@law(negative_sampling, K=several, size=st.sampled_from([1.0, 30.0]))
def test_negative_sampling_is_its_formula(rng, N, D, V, K, size):
    """-log σ of the true word's score, and of minus the drawn words', in Python's math; at scores of 1,000 as well.

    A score is a sum of D products; each term has 4 roundings of a number no larger than it or log 2.
    """
    x, w = size * rng.standard_normal((N, D)), rng.standard_normal((V, D))
    t, negatives = rng.integers(V, size=N), rng.integers(V, size=(N, K))
    total = bound = 0.0
    for n in range(N):
        scores = [-math.fsum(x[n] * w[t[n]]), *(math.fsum(x[n] * w[k]) for k in negatives[n])]
        total += math.fsum(max(u, 0.0) + math.log1p(math.exp(-abs(u))) for u in scores)
        bound += sum(np.abs(x[n]) @ np.abs(w[k]) + 1 for k in (t[n], *negatives[n]))
    loss, _ = negative_sampling(x, w, t, negatives)
    close(loss, total / N, D + N * (K + 1) + 4, bound / N)


@law(glove)
def test_glove_is_its_formula(rng, N, D, V):
    """f (w·v + a + b - y)², the mean over pairs, in Python's math."""
    w, v = rng.standard_normal((2, V, D))
    a, b = rng.standard_normal((2, V))
    i, j = rng.integers(V, size=(2, N))
    y, f = rng.standard_normal((N, 1)), rng.random((N, 1))
    errors = [math.fsum([*(w[i[n]] * v[j[n]]), a[i[n]], b[j[n]], -y[n, 0]]) for n in range(N)]
    bound = [np.abs(w[i[n]]) @ np.abs(v[j[n]]) + abs(a[i[n]]) + abs(b[j[n]]) + abs(y[n, 0]) for n in range(N)]
    loss, _ = glove(w, v, a, b, i, j, y, f)
    want = math.fsum(f[n, 0] * errors[n] ** 2 for n in range(N)) / N
    close(loss, want, 2 * (D + 6) + N, sum(x * x for x in bound) / N)


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("place", ["t", "negatives", "i", "j"])
def test_a_word_that_is_none_is_named(place, wrong):
    """Not taken from the end of the table, as NumPy would a negative one."""
    ids = {name: np.zeros(shape, int) for name, shape in (("t", 2), ("negatives", (2, 2)), ("i", 2), ("j", 2))}
    ids[place].flat[-1] = wrong
    table, bias, number = np.ones((3, 4)), np.ones(3), np.ones((2, 1))
    op, inputs = ((negative_sampling, (table[:2], table, ids["t"], ids["negatives"]))
                  if place in ("t", "negatives") else
                  (glove, (table, table, bias, bias, ids["i"], ids["j"], number, number)))
    with pytest.raises(IndexError, match=f"{wrong} is outside the vocabulary of 3"):
        op(*inputs)
