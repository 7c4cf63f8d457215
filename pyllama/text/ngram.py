"""An n-gram model of token ids with interpolated, modified Kneser-Ney smoothing (Chen & Goodman, 1999, section 4.3).

With h the n - 1 tokens before w, h' the last n - 2 of them, and P_0 = 1/V,

    P_n(w | h) = (c(h w) - D(c(h w))) / c(h)  +  γ(h) P_{n-1}(w | h')         (the first term is 0 if c(h w) = 0)
    γ(h)       = (D1 N1(h) + D2 N2(h) + D3 N3(h)) / c(h)                      (P_n = P_{n-1} if c(h) = 0)

In the highest order c counts occurrences.  In a lower order c(g) counts the distinct tokens that precede g, because
that order predicts what the higher one has not seen.  N1(h), N2(h) and N3(h) are the numbers of tokens that follow h
once, twice and more often.  D(1) = D1, D(2) = D2 and D(c) = D3 for c >= 3 are estimated for each order from the numbers
of n-grams with counts 1 to 4.

An n-gram is represented by a number: its index among the sorted, distinct keys

    (number of its first n - 1 tokens) (V + 1) + last token

One sort thus gives the numbers of all n-grams of a text from those of its (n-1)-grams, and the n-grams that continue a
context are adjacent.  Boundary tokens, V, precede each document: they are context and never predicted.
"""
import math
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.shapes import require_below
from pyllama.text.tokens import Tokens

FALLBACK = (0.5, 1.0, 1.5)      # discounts if the counts do not determine them: small or artificial texts


@dataclass(frozen=True, eq=False)
class Order:
    """The statistics of the n-grams of one length."""
    keys: np.ndarray            # int64, sorted
    share: np.ndarray           # float64: (c - D(c)) / c(h) of each
    rest: np.ndarray            # float64: γ(h) of each (n-1)-gram, 1 if nothing follows it


@dataclass(frozen=True, eq=False)
class Ngram:
    """A fitted n-gram model: see fit()."""
    vocab_size: int
    orders: list[Order]         # of lengths 1, 2, ..., n

    def log_probability(self, tokens: Tokens) -> np.ndarray:
        """log P of each token given the preceding ones of its document: float64 [N], in nats."""
        ids, real = padded(tokens, len(self.orders), self.vocab_size)
        p, gram = np.full(len(ids), 1 / self.vocab_size), np.zeros(len(ids), np.int64)
        for order in self.orders:
            context = np.roll(gram, 1)
            gram = find(order.keys, context, ids, self.vocab_size)
            p *= np.where(context >= 0, order.rest[context], 1)
            p += np.where(gram >= 0, order.share[gram], 0)
        return np.log(p[real])

    def perplexity(self, tokens: Tokens) -> float:
        """exp of the mean of -log P over all tokens, including the first of each document."""
        return math.exp(-self.log_probability(tokens).mean())

    def distribution(self, context) -> np.ndarray:
        """P(w | context) of every token w: float64 [V].  The context is the beginning of a document, of any length."""
        most, V = len(self.orders) - 1, self.vocab_size
        context = np.concatenate([np.full(most, V), np.asarray(context, np.int64)])
        require_below(context, V + 1)
        p = np.full(V, 1 / V)
        for n, order in enumerate(self.orders):
            gram = 0
            for i, token in enumerate(context[len(context) - n:]):
                gram = int(find(self.orders[i].keys, np.array([gram]), np.array([token]), V)[0])
            if gram < 0:
                break
            first, last = np.searchsorted(order.keys, [gram * (V + 1), gram * (V + 1) + V])
            p *= order.rest[gram]
            p[order.keys[first:last] % (V + 1)] += order.share[first:last]
        return p


def padded(tokens: Tokens, order: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids with boundary tokens before each document, whether each is a token of the text)"""
    ids = tokens[:]
    if not ids.size:
        raise UserError("there are no tokens, so no n-grams to count; give some text")
    require_below(ids, vocab_size)
    boundary = max(order - 1, 1)
    starts = np.cumsum(tokens.stops - tokens.starts) - (tokens.stops - tokens.starts)
    at = np.repeat(starts, boundary)
    return np.insert(ids, at, vocab_size), np.insert(np.ones(len(ids), bool), at, False)


def find(keys, context, last, vocab_size):
    """The numbers of the n-grams with these contexts and last tokens; -1 for those that do not occur."""
    key = context * (vocab_size + 1) + last
    index = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    return np.where(keys[index] == key, index, -1)                      # a context of -1 gives a negative key


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """D1, D2, D3 of n-grams with these counts (equation 26).

    FALLBACK if no n-gram has one of the counts 1 to 4, or if D2 or D3 would be negative.
    """
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[1:5])
    if not min(n1, n2, n3, n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    estimates = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return estimates if min(estimates) >= 0 else FALLBACK


def fit(tokens: Tokens, order: int, vocab_size: int) -> Ngram:
    """Fit the model of n-grams up to length `order` to documents; tokens.joined() makes Tokens from arrays.

    Raises UserError if the order is below 1 or there are no tokens, IndexError if an id is not below vocab_size.
    """
    if order < 1:
        raise UserError(f"order is {order}; it must be at least 1")
    ids, real = padded(tokens, order, vocab_size)
    gram, contexts = np.zeros(len(ids), np.int64), 1
    lengths = []                                    # of each length: keys, n-gram at each position, number of contexts
    for _ in range(order):
        context = np.roll(gram, 1)                  # the first is a boundary, so its context does not matter
        keys, gram = np.unique(context * (vocab_size + 1) + ids, return_inverse=True)
        lengths.append((keys, gram, contexts))
        contexts = len(keys)
    orders = []
    for n, (keys, gram, contexts) in enumerate(lengths):
        counted = gram[real]
        if n + 1 < order:                           # count each distinct longer n-gram once
            _, first = np.unique(lengths[n + 1][1][real], return_index=True)
            counted = counted[first]
        orders.append(estimate(keys, np.bincount(counted, minlength=len(keys)), contexts, vocab_size))
    return Ngram(vocab_size, orders)


def estimate(keys, counts, contexts, vocab_size):
    """The Order with these counts; n-grams that end with a boundary have count 0."""
    discount = np.array([0.0, *discounts(counts[counts > 0])])[np.minimum(counts, 3)]
    context = keys // (vocab_size + 1)
    total, freed = (np.bincount(context, weights, contexts) for weights in (counts, discount))
    share = (counts - discount) / np.maximum(total, 1)[context]
    return Order(keys, share, np.where(total > 0, freed / np.maximum(total, 1), 1))
