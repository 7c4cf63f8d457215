"""Skip-gram with negative sampling (Mikolov et al., 2013): a word's vector predicts the words around it.

The parameters are two matrices [V D]: "input" for center words, whose rows are the word vectors, and "output" for
context words.

Axes: D model, V vocabulary, K negatives, N pairs of a center and a context word.
"""
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.models.recompute import recomputed
from pyllama.models.words import WordsConfig, laid_out, visit
from pyllama.ops import embedding, negative_sampling
from pyllama.rng import generator
from pyllama.text.tokens import Tokens


@dataclass(frozen=True)
class SkipgramConfig(WordsConfig):
    """word2vec's settings."""

    TYPE = "skipgram"

    negatives: int = 5                          # K, drawn for each pair
    noise_exponent: float = 0.75                # negatives are drawn in proportion to count^exponent
    subsample: float = 1e-3                     # share of the text above which words are subsampled; 0: off

    def __post_init__(self):
        super().__post_init__()
        self.check(positive=("negatives",))
        for name in ("noise_exponent", "subsample"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie in 0 <= a <= 1")


def init(c: SkipgramConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """The input matrix uniform within ±1/2D, the output matrix zero, as in word2vec."""
    centers = generator(seed, "init").uniform(-0.5, 0.5, (c.vocab_size, c.hidden_size)) / c.hidden_size
    return {"input": {"weight": centers.astype(dtype)}, "output": {"weight": np.zeros(centers.shape, dtype)}}


def loss(centers, contexts, negatives, p, c, *, recompute=False):
    """Mean loss of pairs with negatives: centers, contexts [N], negatives [N K] -> nats, a 0-d float.

    See ops/negative_sampling.py.  back(dvalue=1.0) gives the gradients of p.
    """
    x, embed_back = embedding(centers[None], p["input"]["weight"])
    score = recomputed(negative_sampling) if recompute else negative_sampling
    value, score_back = score(x[0], p["output"]["weight"], contexts, negatives)

    def back(dvalue=1.0):
        dx, dw, *_ = score_back(dvalue)
        _, d_embed = embed_back(dx[None])
        return {"input": {"weight": d_embed}, "output": {"weight": dw}}

    return value, back


def vectors(p) -> np.ndarray:
    """The word vectors [V D]."""
    return p["input"]["weight"]


# Training data

def keep_probability(counts: np.ndarray, subsample: float) -> np.ndarray:
    """The probability [V] to keep an occurrence of each word: min(1, √(t/f)) for a share f of the text (equation 5)."""
    share = counts / counts.sum()
    return np.minimum(1, np.sqrt(subsample / np.maximum(share, subsample))) if subsample else np.ones(len(counts))


def noise(counts: np.ndarray, exponent: float) -> np.ndarray:
    """The cumulative distribution [V] of negatives; a word that never occurs has probability 0."""
    cumulative = np.cumsum(np.where(counts > 0, counts.astype(float) ** exponent, 0))
    return cumulative / cumulative[-1]


def neighbors(document: np.ndarray, at: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(centers, contexts): all pairs of positions in the same document[N], at most reach[i] from the center at[i].

    at, reach    int64 [M]
    """
    farthest = int(reach.max(initial=0))
    offset = np.delete(np.arange(-farthest, farthest + 1), farthest)
    other = at[:, None] + offset
    near = (np.abs(offset) <= reach[:, None]) & (other >= 0) & (other < len(document))
    near &= document[np.where(near, other, 0)] == document[at][:, None]
    center, _ = np.nonzero(near)
    return at[center], other[near]


def batches(tokens: Tokens, c: SkipgramConfig, batch_size: int, seed: int) -> Callable[[int], tuple[np.ndarray, ...]]:
    """batch(step) -> (centers[N], contexts[N], negatives[N K]), int64: the pairs around batch_size positions.

    An epoch visits each position once.  It subsamples frequent words, which brings the others closer together, and
    gives each center a random window of 1 to c.window words.  So N differs between steps and may be 0.  Windows do not
    cross documents.
    """
    ids, document = laid_out(tokens, c)
    counts = np.bincount(ids, minlength=c.vocab_size)
    stays, cumulative = keep_probability(counts, c.subsample)[ids], noise(counts, c.noise_exponent)

    @functools.lru_cache(maxsize=1)
    def drawn(epoch):
        kept = generator(seed, "subsample", epoch).random(len(ids)) < stays
        return kept, np.cumsum(kept) - 1, generator(seed, "window", epoch).integers(1, c.window + 1, len(ids))

    def batch(step):
        epoch, positions = visit(len(ids), batch_size, seed, step)
        kept, rank, reach = drawn(epoch)
        positions = positions[kept[positions]]
        centers, contexts = neighbors(document[kept], rank[positions], reach[positions])
        uniform = generator(seed, "negatives", step).random((len(centers), c.negatives))
        left = ids[kept]
        return left[centers], left[contexts], np.searchsorted(cumulative, uniform, "right")

    return batch
