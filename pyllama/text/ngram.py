"""An n-gram model: the interpolated, modified Kneser-Ney of Chen & Goodman (1999, section 4.3), over token ids.

With h the n - 1 tokens before w, h' the last n - 2 of them, and P_0 = 1/V,

    P_n(w | h) = (c(h w) - D(c(h w))) / c(h)  +  γ(h) P_{n-1}(w | h')         (the first term 0 where c(h w) = 0)
    γ(h)       = (D1 N1(h) + D2 N2(h) + D3 N3(h)) / c(h)                      and P_n = P_{n-1} where c(h) = 0

c of the highest order counts occurrences; a lower order is there for what the higher has not seen, so its c(g) counts
the different tokens that stand before g.  N1(h), N2(h), N3(h) are how many tokens follow h once, twice, more often;
D(1), D(2), D(3 and more) = D1, D2, D3 are estimated for each order from how many n-grams have counts of 1 to 4.

An n-gram is a number: its place among the sorted, different keys (number of its first n - 1 tokens) (V + 1) + last
token.  So the numbers of all n-grams of a text come from those of its (n-1)-grams by one sort, what follows a context
lies side by side, and nothing is spelled out.  Before each document stand boundary tokens, V, which are context and
never predicted.
"""
import math
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.shapes import require_below
from pyllama.text.tokens import Tokens

FALLBACK = (0.5, 1.0, 1.5)      # discounts where counts of counts give none: small or artificial texts


@dataclass(frozen=True, eq=False)
class Order:
    """What is known of n-grams of one length."""
    keys: np.ndarray            # int64, sorted
    share: np.ndarray           # float64: (c - D(c)) / c(h) of each
    rest: np.ndarray            # float64: γ(h) of each (n-1)-gram, 1 where nothing follows it


@dataclass(frozen=True, eq=False)
class Ngram:
    """A fitted model."""
    vocab_size: int
    orders: list[Order]         # of length 1, 2, ..., n

    def log_probability(self, tokens: Tokens) -> np.ndarray:
        """log P of each token, given those before it in its document; float64[N], in nats."""
        ids, real = padded(tokens, len(self.orders), self.vocab_size)
        p, gram = np.full(len(ids), 1 / self.vocab_size), np.zeros(len(ids), np.int64)
        for order in self.orders:
            context = np.roll(gram, 1)
            gram = find(order.keys, context, ids, self.vocab_size)
            p *= np.where(context >= 0, order.rest[context], 1)
            p += np.where(gram >= 0, order.share[gram], 0)
        return np.log(p[real])

    def perplexity(self, tokens: Tokens) -> float:
        """exp of the mean of -log P, over every token, a document's first one too."""
        return math.exp(-self.log_probability(tokens).mean())

    def distribution(self, context) -> np.ndarray:
        """P(w | context) of every token w, float64[V].  The context begins its document, whatever its length."""
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
    """(ids with boundary tokens before each document, which of them are the text's)"""
    ids = tokens[:]
    if not ids.size:
        raise UserError("there are no tokens to count n-grams of; give some text")
    require_below(ids, vocab_size)
    boundary = max(order - 1, 1)
    starts = np.cumsum(tokens.stops - tokens.starts) - (tokens.stops - tokens.starts)
    at = np.repeat(starts, boundary)
    return np.insert(ids, at, vocab_size), np.insert(np.ones(len(ids), bool), at, False)


def find(keys, context, last, vocab_size):
    """The numbers of the n-grams made of these contexts and last tokens; -1 where there is none."""
    wanted = context * (vocab_size + 1) + last
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)                   # a context of -1 makes a key below 0


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """D1, D2, D3 of n-grams with these counts (equation 26), or FALLBACK if one of 1 to 4 is no n-gram's count or
    a discount comes out below 0: D2 and D3 may."""
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[1:5])
    if not min(n1, n2, n3, n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if min(found) >= 0 else FALLBACK


def fit(tokens: Tokens, order: int, vocab_size: int) -> Ngram:
    """The model of n-grams up to length `order` of these documents; data.joined makes Tokens of arrays.

    Raises UserError if the order is below 1 or there is no token, IndexError on an id that is not below vocab_size.
    """
    if order < 1:
        raise UserError(f"order is {order}; an n-gram has at least 1 token")
    ids, real = padded(tokens, order, vocab_size)
    gram, contexts = np.zeros(len(ids), np.int64), 1
    found = []                                      # of each length: keys, number at each place, and its contexts
    for _ in range(order):
        context = np.roll(gram, 1)                  # what the first place gets is of no account: it is a boundary
        keys, gram = np.unique(context * (vocab_size + 1) + ids, return_inverse=True)
        found.append((keys, gram, contexts))
        contexts = len(keys)
    orders = []
    for n, (keys, gram, contexts) in enumerate(found):
        counted = gram[real]
        if n + 1 < order:                           # each different longer n-gram once: at any place where it stands
            _, somewhere = np.unique(found[n + 1][1][real], return_index=True)
            counted = counted[somewhere]
        orders.append(estimate(keys, np.bincount(counted, minlength=len(keys)), contexts, vocab_size))
    return Ngram(vocab_size, orders)


def estimate(keys, counts, contexts, vocab_size):
    """The Order with these counts, most of which are of n-grams that end in a token, some (0) in a boundary."""
    discount = np.array([0.0, *discounts(counts[counts > 0])])[np.minimum(counts, 3)]
    of = keys // (vocab_size + 1)
    total, freed = (np.bincount(of, weights, contexts) for weights in (counts, discount))
    share = (counts - discount) / np.maximum(total, 1)[of]
    return Order(keys, share, np.where(total > 0, freed / np.maximum(total, 1), 1))
