"""Corrupted text for pre-training: BERT's masked tokens, BART's shuffled sentences and masked spans."""
import numpy as np

from pyllama.errors import UserError


def mask_tokens(ids, rng: np.random.Generator, mask_token_id: int, vocab_size: int, special=(), share: float = 0.15):
    """Mask tokens for BERT: (input ids, labels), both of the shape of ids.

    ids       integers of any shape
    special   ids of tokens that are never masked
    share     of the other tokens is to be predicted, drawn at random

    Of the tokens to predict, 80% are replaced by the mask, 10% by a random token, and 10% are unchanged.  The labels of
    all others are -100.

    Source: Devlin et al., "BERT", 2019, section 3.1.
    """
    chosen = (rng.random(ids.shape) < share) & ~np.isin(ids, list(special))
    fate, other = rng.random(ids.shape), rng.integers(0, vocab_size, ids.shape)
    read = np.where(chosen & (fate < 0.8), mask_token_id, np.where(chosen & (fate >= 0.9), other, ids))
    return read, np.where(chosen, ids, -100)


def corrupt(ids, rng: np.random.Generator, mask_token_id: int, sentence_ends=(), share: float = 0.3,
            mean_span: float = 3.0) -> list[int]:
    """Corrupt a text for BART: the encoder reads the result, and the decoder learns to reconstruct `ids`.

    ids             token ids [N]
    sentence_ends   a sentence ends after each of these ids; the sentences are shuffled
    share           at least this share of the tokens is masked, each span of them by a single mask
    mean_span       mean length of the spans, which is Poisson; a span of length 0 inserts a mask between two tokens

    Raises UserError unless 0 <= share <= 1 and mean_span > 0.

    Source: Lewis et al., "BART", 2020, section 2.2.
    """
    if not 0 <= share <= 1 or mean_span <= 0:
        raise UserError(f"share is {share} and mean_span {mean_span}; give a share from 0 to 1 and a mean above 0")
    cuts = [i + 1 for i, token in enumerate(ids) if token in sentence_ends]
    sentences = np.split(np.asarray(ids, dtype=int), cuts)
    text = np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])
    masked, inserted = np.zeros(len(text), bool), np.zeros(len(text) + 1, bool)
    while masked.sum() < share * len(text):
        length = min(rng.poisson(mean_span), len(text))
        start = rng.integers(len(text) - length + 1)
        masked[start:start + length] = True
        inserted[start] |= length == 0
    begins = masked & ~np.concatenate([[False], masked[:-1]])
    source: list[int] = []
    for i, token in enumerate(text):
        source += [mask_token_id] * (bool(inserted[i]) + bool(begins[i])) + ([] if masked[i] else [int(token)])
    return source + [mask_token_id] * bool(inserted[-1])
