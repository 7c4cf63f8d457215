"""Corrupted text for pre-training: BERT's masked tokens, BART's shuffled sentences and masked spans."""
import numpy as np

from pyllama.errors import UserError


def mask_tokens(ids, rng: np.random.Generator, mask_token_id: int, vocab_size: int, special=(), share: float = 0.15):
    """(what the model reads, the labels): of each token that is not special, `share` is to be predicted, and of these
    80 % are replaced by the mask, 10 % by any token, and 10 % left as they are (section 3.1).  ids of any shape."""
    chosen = (rng.random(ids.shape) < share) & ~np.isin(ids, list(special))
    fate, other = rng.random(ids.shape), rng.integers(0, vocab_size, ids.shape)
    read = np.where(chosen & (fate < 0.8), mask_token_id, np.where(chosen & (fate >= 0.9), other, ids))
    return read, np.where(chosen, ids, -100)


def corrupt(ids, rng: np.random.Generator, mask_token_id: int, sentence_ends=(), share: float = 0.3,
            mean_span: float = 3.0) -> list[int]:
    """What the encoder reads while the decoder learns to say `ids`: the sentences in another order, and at least
    `share` of the tokens hidden, each span of them behind one mask (section 2.2).

    A sentence ends after one of the ids in sentence_ends.  The spans' lengths are Poisson with mean mean_span; one of
    length 0 puts a mask between two tokens.  Raises UserError unless 0 <= share <= 1 and mean_span > 0.
    """
    if not 0 <= share <= 1 or mean_span <= 0:
        raise UserError(f"share is {share} and mean_span {mean_span}; give a share from 0 to 1 and a mean above 0")
    cuts = [i + 1 for i, token in enumerate(ids) if token in sentence_ends]
    sentences = np.split(np.asarray(ids, dtype=int), cuts)
    text = np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])
    hidden, before = np.zeros(len(text), bool), np.zeros(len(text) + 1, bool)
    while hidden.sum() < share * len(text):
        length = min(rng.poisson(mean_span), len(text))
        start = rng.integers(len(text) - length + 1)
        hidden[start:start + length] = True
        before[start] |= length == 0
    begins = hidden & ~np.concatenate([[False], hidden[:-1]])
    source: list[int] = []
    for i, token in enumerate(text):
        source += [mask_token_id] * (bool(before[i]) + bool(begins[i])) + ([] if hidden[i] else [int(token)])
    return source + [mask_token_id] * bool(before[-1])
