"""What a model learns from plain text: the next token, masked tokens, or a text from its corrupted copy.

    objective = objective_of(config, tokenizer)
    for record in train(state, objective.source(tokens), settings): ...

The model's configuration says which (Config.LEARNS).  LLaMA and GPT-2 read windows of tokens as they are.  BERT and
BART read corrupted ones and predict what was there.  All random numbers depend on (seed, step) alone, in an evaluation
on the batch's number: every evaluation is the same.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.models.config import Learns
from pyllama.rng import generator
from pyllama.text import corruption
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Batch, Tokens, evaluation_windows, windows
from pyllama.training import loop
from pyllama.training.examples import collate

Damage = Callable[[np.ndarray, np.random.Generator], Batch]             # of ids [B T]
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


class Objective(NamedTuple):
    source: Callable[[Tokens], Any]             # tokens -> what loop.train() draws its batches from
    evaluate: Callable                          # evaluate(state, source, settings, most), for run.run()


class Reconstruction(NamedTuple):
    """How well corrupted text is reconstructed."""
    loss: float                                 # nats per predicted token
    perplexity: float
    tokens: int                                 # predicted

    @property
    def rank(self) -> float:
        return self.loss

    def __str__(self):
        return f"perplexity {self.perplexity:.2f}"


def objective_of(config, tokenizer: Tokenizer) -> Objective:
    """Raises UserError if the model learns nothing from text, or needs a mask and the tokenizer has none."""
    if config.learns is None:
        raise UserError(f"a {config.TYPE} with this head does not learn from plain text; train it on a task with "
                        f"`pyllama finetune`")
    if continues(config):
        return Objective(lambda tokens: tokens, loop.evaluate)
    require_mask(config.TYPE, tokenizer)
    return Objective(partial(CorruptedText, damage=DAMAGES[config.learns](config, tokenizer)), evaluate)


def continues(config) -> bool:
    """Does the model continue texts?"""
    return config.learns == "next token"


def needs_mask(learns: Learns) -> bool:
    """Does this objective put a mask in the place of tokens?"""
    return learns in DAMAGES


def require_mask(kind: str, tokenizer: Tokenizer) -> None:
    if tokenizer.mask_id is None:
        raise UserError(f"a {kind} learns from text with tokens behind a mask, and this tokenizer has no <mask> or "
                        f"[MASK]; learn one that has by --tokenizer bpe, or give such a tokenizer.json")


def masked(config, tokenizer: Tokenizer) -> Damage:
    """BERT's: some tokens are masked, or others stand in their place."""
    special = tokenizer.special_ids

    def damage(ids, rng):
        read, labels = corruption.mask_tokens(ids, rng, tokenizer.mask_id, config.vocab_size, special)
        return Batch({"ids": read, "labels": labels}, int(np.sum(labels != -100)))

    return damage


def noised(config, tokenizer: Tokenizer) -> Damage:
    """BART's: sentences in another order, spans of tokens behind one mask."""
    ends = frozenset(i for i in range(tokenizer.vocab_size)
                     if tokenizer.decode([i]).rstrip().endswith(SENTENCE_ENDS))
    longest = config.max_position_embeddings

    def damage(ids, rng):
        return collate([{"ids": np.array(corruption.corrupt(row, rng, tokenizer.mask_id, ends)[:longest]),
                         "labels": row} for row in ids])

    return damage


DAMAGES: dict[Learns, Callable[..., Damage]] = {"masked tokens": masked, "corrupted text": noised}


@dataclass(frozen=True)
class CorruptedText:
    """Windows of tokens, and what a model reads in their place."""
    tokens: Tokens
    damage: Damage

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, settings, step: int) -> Batch:
        """A step of loop.train."""
        ids = windows(self.tokens, settings.rows_per_step, settings.block_size, settings.seed, step)
        return self.damage(ids[:, :-1], generator(settings.seed, "damage", step))


def evaluate(state, source: CorruptedText, settings, most: int | None = None) -> Reconstruction:
    """Over all whole windows, or those in the first `most` tokens, but one at least.  Raises UserError if none of their
    tokens is to be predicted."""
    tokens = source.tokens
    if most is not None:
        tokens = tokens.between(0, min(max(most, settings.block_size) + 1, len(tokens)))

    def damaged():
        for number, (ids, labels) in enumerate(evaluation_windows(tokens, settings.batch_size, settings.block_size)):
            whole = ids[(labels[:, 1:] != -100).all(axis=1), :-1]
            if len(whole):
                yield source.damage(whole, generator(settings.seed, "evaluation", number)).beside(state.flat)

    loss, targets = loop.mean_loss(state.p, state.config, damaged())
    if not targets:
        raise UserError(f"none of the {len(tokens)} tokens to evaluate on was masked; give more text or larger "
                        f"eval_tokens")
    return Reconstruction(loss, loop.perplexity(loss), int(targets))
