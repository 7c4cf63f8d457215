"""Training objectives on plain text: predict the next token, predict masked tokens, or reconstruct corrupted text.

    objective = objective_of(config, tokenizer)
    for record in train(state, objective.source(tokens), settings): ...

The model's configuration selects the objective (Config.LEARNS).  LLaMA and GPT-2 read windows of tokens.  BERT and BART
read corrupted windows and predict the original tokens.  Random numbers depend on (seed, step) alone.  In an evaluation
they depend on the number of the batch, so all evaluations corrupt the text in the same way.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pyllama.errors import UserError, with_article
from pyllama.models.config import Learns
from pyllama.rng import generator
from pyllama.text import corruption
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Batch, Tokens, evaluation_windows, windows
from pyllama.training import loop
from pyllama.training.examples import collate

Damage = Callable[[np.ndarray, np.random.Generator], Batch]             # (ids [B T], generator) -> Batch
ATTEMPTS = 100                                              # draws of a step, which may have special tokens alone
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


class Objective(NamedTuple):
    """How a model learns from tokens, and how it is evaluated on them."""
    source: Callable[[Tokens], Any]             # tokens -> the source of batches for loop.train()
    evaluate: Callable                          # evaluate(state, source, settings, most), as run.run() takes


class Reconstruction(NamedTuple):
    """How well corrupted text is reconstructed."""
    loss: float                                 # nats per predicted token
    perplexity: float
    tokens: int                                 # number predicted

    @property
    def rank(self) -> float:
        """The quantity that is lowest for the best checkpoint."""
        return self.loss

    def __str__(self):
        return loop.in_words(self.perplexity)


def objective_of(config, tokenizer: Tokenizer) -> Objective:
    """The objective of a model.

    Raises UserError if the model does not learn from plain text, or needs a mask token and the tokenizer has none.
    """
    if config.learns is None:
        raise UserError(f"{with_article(config.TYPE)} with this head does not learn from plain text; train it on a "
                        f"task with `pyllama finetune`")
    if continues(config):
        return Objective(lambda tokens: tokens, loop.evaluate)
    require_mask(config.TYPE, tokenizer)
    return Objective(partial(CorruptedText, damage=DAMAGES[config.learns](config, tokenizer)), evaluate)


def continues(config) -> bool:
    """Does the model predict the next token, so that it can continue a text?"""
    return config.learns == "next token"


def check_packing(config, settings: loop.Settings) -> None:
    """Raise UserError if the settings ask for packing, but the model does not predict the next token."""
    if settings.packing and not continues(config):
        raise UserError("packing needs a model that predicts the next token, such as llama or gpt2; leave packing out")


def needs_mask(learns: Learns) -> bool:
    """Does this objective replace tokens by a mask token?"""
    return learns in DAMAGES


def require_mask(kind: str, tokenizer: Tokenizer) -> None:
    """Raise UserError if the tokenizer has no mask token, which a model of this kind needs."""
    if tokenizer.mask_id is None:
        raise UserError(f"{with_article(kind)} learns from text with masked tokens, but this tokenizer has no <mask> "
                        f"or [MASK]; learn one with tokenizer bpe, or give a tokenizer.json that has one")


def masked(config, tokenizer: Tokenizer) -> Damage:
    """BERT's corruption: see mask_tokens()."""
    special = tokenizer.special_ids

    def damage(ids, rng):
        read, labels = corruption.mask_tokens(ids, rng, tokenizer.mask_id, config.vocab_size, special)
        return Batch({"ids": read, "labels": labels}, int(np.sum(labels != -100)))

    return damage


def noised(config, tokenizer: Tokenizer) -> Damage:
    """BART's corruption: see corrupt()."""
    ends = frozenset(i for i in range(tokenizer.vocab_size)
                     if tokenizer.decode([i]).rstrip().endswith(SENTENCE_ENDS))
    longest = config.context

    def damage(ids, rng):
        return collate([{"ids": np.array(corruption.corrupt(row, rng, tokenizer.mask_id, ends)[:longest]),
                         "labels": row} for row in ids])

    return damage


DAMAGES: dict[Learns, Callable[..., Damage]] = {"masked tokens": masked, "corrupted text": noised}


@dataclass(frozen=True)
class CorruptedText:
    """Windows of tokens, corrupted: a source of batches for loop.train()."""
    tokens: Tokens
    damage: Damage

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, settings, step: int) -> Batch:
        """The corrupted windows of a step, and their labels: drawn again if no token is to be predicted."""
        ids = windows(self.tokens, settings.rows_per_step, settings.block_size, settings.seed, step)
        batch = self.damage(ids[:, :-1], generator(settings.seed, "damage", step))
        for attempt in range(1, ATTEMPTS):
            if batch.targets:
                break
            batch = self.damage(ids[:, :-1], generator(settings.seed, "damage", step, attempt))
        return batch


def evaluate(state, source: CorruptedText, settings, most: int | None = None) -> Reconstruction:
    """Loss and perplexity on corrupted windows.

    most    use the complete windows in the first `most` tokens, at least one window; None: all

    Raises UserError if no token in them is to be predicted.
    """
    tokens = source.tokens
    if most is not None:
        tokens = tokens.between(0, min(max(most, settings.block_size) + 1, len(tokens)))

    def corrupted():
        for number, (ids, labels) in enumerate(evaluation_windows(tokens, settings.batch_size, settings.block_size)):
            complete = ids[(labels[:, 1:] != -100).all(axis=1), :-1]
            if len(complete):
                batch = source.damage(complete, generator(settings.seed, "evaluation", number))
                yield batch.on_device_of(state.flat)

    loss, targets = loop.mean_loss(state.working.tree, state.config, corrupted())
    if not targets:
        raise UserError(f"none of the {len(tokens)} evaluation tokens was masked; give more text or raise eval_tokens")
    return Reconstruction(loss, loop.perplexity(loss), int(targets))
