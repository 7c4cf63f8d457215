"""Beam search for the most likely target of an encoder-decoder, with K unfinished hypotheses at a time.

    score = log p(target | source) / length^length_penalty

Every step extends each of a source's beams by every token.  Among the K most likely extensions, those that end are
finished.  The K most likely extensions that do not end are the next beams.  With one beam this is greedy decoding,
which stops at the first end token.  With as many beams as there are targets it is an exhaustive search.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.generation.choice import require_finite
from pyllama.generation.session import encoded, open_session
from pyllama.generation.settings import NO_RULES, Rules
from pyllama.ops.softmax import log_sum_exp


@dataclass(frozen=True)
class Hypothesis:
    """A finished target, which ended or reached max_new_tokens."""

    ids: list[int]                          # without the start token, with the end token if it has one
    score: float
    finished: bool                          # it ended with an end token


class Beam(NamedTuple):
    """An unfinished target."""
    ids: list[int]                          # the start token first
    log_p: float
    row: int                                # row of the last step that it extends


@dataclass(frozen=True)
class SearchConfig:
    """How to search for a target, under the names of Hugging Face's generate().  Raises UserError for an invalid value.
    """

    max_new_tokens: int = 100               # maximum number of tokens to generate
    num_beams: int = 1                      # beams; 1: greedy decoding
    length_penalty: float = 1.0             # exponent of the length in the score: above 0 favors long answers
    early_stopping: bool = False            # stop at num_beams finished answers, though a better one may follow

    def __post_init__(self):
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not -10 <= self.length_penalty <= 10:
            raise UserError(f"length_penalty is {self.length_penalty}; it must be between -10 and 10")


def beam_search(step: Callable, start: int, ends: Sequence[int], count: int, settings: SearchConfig,
                rules: Rules = NO_RULES) -> list[list[Hypothesis]]:
    """For each of `count` sources, up to num_beams targets, the best first.

    step     step(tokens [N], rows [N]) -> log p [N V] of the next token; row i extends row rows[i] of the previous step
             by tokens[i].  The first call has one row per source
    start    id of the start token
    ends     ids of the end tokens
    rules    which tokens may come next

    Raises UserError if the rules exclude every token.
    """
    K, longest = settings.num_beams, settings.max_new_tokens
    live: dict[int, list[Beam]] = {source: [Beam([start], 0.0, source)] for source in range(count)}
    done: dict[int, list[Hypothesis]] = {source: [] for source in range(count)}
    for length in range(1, longest + 1):
        beams = [beam for unfinished in live.values() for beam in unfinished]
        log_p = step(np.array([beam.ids[-1] for beam in beams]), np.array([beam.row for beam in beams]))
        if rules != NO_RULES:
            log_p = np.stack([rules.restrict(row, beam.ids, length - 1, longest - length + 1, ends)
                              for row, beam in zip(log_p, beams, strict=True)])
        first = 0
        for source, before in list(live.items()):
            rows = slice(first, first + len(before))
            total = np.array([beam.log_p for beam in before])[:, None] + log_p[rows]
            live[source] = []
            for rank, index in enumerate(best(total.ravel(), K * (1 + len(ends)))):     # at least K are not ends
                row, token = divmod(int(index), total.shape[1])
                ids, sum_p = [*before[row].ids, token], float(total[row, token])
                if rank < K and (token in ends or length == longest):
                    done[source].append(Hypothesis(ids[1:], sum_p / length ** settings.length_penalty, token in ends))
                elif token not in ends and len(live[source]) < K:
                    live[source].append(Beam(ids, sum_p, first + row))
            first = rows.stop
            done[source] = sorted(done[source], key=lambda h: -h.score)[:K]
            if not live[source] or satisfied(done[source], live[source], length, settings):
                del live[source]
        if not live:
            break
    if not all(done.values()):
        raise UserError("the rules of generation_config.json, or no_repeat_ngram_size, exclude every token; relax them")
    return list(done.values())


def best(total, n):
    """The indices of the n highest numbers above -∞, the highest first; of equal numbers, the lower index first."""
    order = np.argsort(-total, kind="stable")[:n]
    return order[total[order] > -np.inf]


def satisfied(done, unfinished, length, settings):
    """True if no unfinished beam can beat the K-th finished target.  log p only falls, but the divisor may grow."""
    if len(done) < settings.num_beams:
        return False
    longest = settings.max_new_tokens if settings.length_penalty > 0 else length + 1
    bound = max(beam.log_p for beam in unfinished) / longest ** settings.length_penalty
    return settings.early_stopping or settings.num_beams == 1 or bound <= done[-1].score


def targets(p, c, sources: Sequence[Sequence[int]], settings: SearchConfig | None = None,
            size: int | None = None, rules: Rules = NO_RULES) -> list[list[Hypothesis]]:
    """For each of the sources, up to num_beams targets of an encoder-decoder, the best first.

    p, c       parameters and configuration
    sources    sequences of ids
    size       number of tokens, if the embedding matrix has more rows
    rules      which tokens may come next

    A target is at most max_position_embeddings long if positions are learned.  Raises UserError if the model has no end
    token, a source is empty, or a score is not finite.
    """
    settings = settings or SearchConfig()
    if rules.max_length is not None:
        settings = replace(settings, max_new_tokens=max(1, rules.max_length - 1))       # it counts the start token
    if c.positions == "learned":
        settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, c.max_position_embeddings))
    ends = c.eos_token_id if isinstance(c.eos_token_id, list) else [c.eos_token_id]
    if None in ends:
        raise UserError("the model has no eos_token_id, so no target would end; set it in config.json")
    if not all(map(len, sources)):
        raise UserError("a source is empty; give it some text")
    if not sources:
        return []
    room = settings.max_new_tokens + 1
    session = open_session(p, c, len(sources), room, encoded(p, c, sources))

    def step(tokens, rows):
        session.keep(rows.tolist())
        z = session.extend(tokens[:, None].tolist())[:, :size]
        require_finite(z)
        return z - log_sum_exp(z)

    return beam_search(step, c.decoder_start_token_id, ends, len(sources), settings, rules)
