"""Beam search for the most likely text, with K unfinished hypotheses at a time.

    score = log p(text | prompt or source) / length^length_penalty

Every step extends each of a prompt's beams by every token.  Among the K most likely extensions, those that end are
finished.  The K most likely extensions that do not end are the next beams.  With as many beams as there are texts it is
an exhaustive search.  The length is that of the text without its prompt, the end token counted.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.generation.choice import repetition_penalty, require_finite
from pyllama.generation.rules import EXCLUDED, NO_RULES, Rules
from pyllama.generation.settings import GenerationConfig
from pyllama.generation.start import Start
from pyllama.generation.window import Window
from pyllama.ops.softmax import log_sum_exp


class Hypothesis(NamedTuple):
    """A finished text."""
    ids: list[int]                          # without the prompt, with the end token if it has one
    score: float


class Beam(NamedTuple):
    """An unfinished text."""
    ids: list[int]                          # without the prompt
    log_p: float
    row: int                                # among the beams of the step before, the one that it extends


@dataclass
class Search:
    """The search for the texts of one prompt.

    stops       does a stop string end the text of these ids?
    """

    start: Start
    settings: GenerationConfig
    rules: Rules = NO_RULES
    stops: Callable[[list[int]], bool] = lambda ids: False
    live: list[Beam] = field(default_factory=lambda: [Beam([], 0.0, 0)])
    done: list[Hypothesis] = field(default_factory=list)                    # the best first

    def step(self, z) -> None:
        """Extend the live beams by a token each, whose scores are z [K V]; none is live when the search has ended.

        Raises UserError if the rules exclude every token.
        """
        K, length = self.settings.num_beams, len(self.live[0].ids) + 1
        total = np.array([beam.log_p for beam in self.live])[:, None] + self._log_p(z)
        before, self.live = self.live, []
        for rank, index in enumerate(best(total.ravel(), K * (1 + max(1, len(self.start.ends))))):    # K are not ends
            row, token = divmod(int(index), total.shape[1])
            ids, log_p = [*before[row].ids, token], float(total[row, token])
            if token in self.start.ends or length == self.start.room or self.stops(ids):
                if rank < K:
                    self.done.append(Hypothesis(ids, log_p / length ** self.settings.length_penalty))
            elif len(self.live) < K:
                self.live.append(Beam(ids, log_p, row))
        self.done = sorted(self.done, key=lambda hypothesis: -hypothesis.score)[:K]
        if not self.live and not self.done:
            raise UserError(EXCLUDED)
        if self.live and self._is_decided(length):
            self.live = []

    def _log_p(self, z):
        """log p [K V] of the next tokens, after the repetition penalty and the rules: they change it, as in
        transformers, without another normalization."""
        require_finite(z)
        log_p = z - log_sum_exp(z)
        if self.settings.repetition_penalty == 1 and self.rules == NO_RULES:
            return log_p
        new = len(self.live[0].ids)
        rows = []
        for row, beam in zip(log_p, self.live, strict=True):
            known = [*self.start.ids, *beam.ids]
            if self.settings.repetition_penalty != 1:
                row = repetition_penalty(row, known, self.settings.repetition_penalty)
            rows.append(self.rules.restrict(row, known, new, self.start.room - new, self.start.ends))
        return np.stack(rows)

    def _is_decided(self, length: int) -> bool:
        """Can no unfinished beam beat the K-th finished text?  log p only falls, but the divisor may grow."""
        s = self.settings
        if len(self.done) < s.num_beams:
            return False
        longest = self.start.room if s.early_stopping == "never" and s.length_penalty > 0 else length
        return s.early_stopping is True or self.live[0].log_p / longest ** s.length_penalty <= self.done[-1].score


def best(total, n: int):
    """The indices of the n highest numbers above -∞, the highest first; of equal numbers, the lower index first."""
    least = np.partition(total, -n)[-n] if n < total.size else -np.inf
    high, = np.nonzero(total >= least)
    order = high[np.argsort(-total[high], kind="stable")[:n]]
    return order[total[order] > -np.inf]


def run(searches: Sequence[Search], window: Window, scores: Any, size: int) -> None:
    """Run the searches, each with a sequence of the window, until all have ended.

    scores      [B V] of the first new tokens
    size        number of tokens, if there are more scores
    """
    unfinished = [*searches]
    while unfinished:
        kept, first = [], 0
        for search in unfinished:
            after = first + len(search.live)
            search.step(scores[first:after, :size])
            kept += [first + beam.row for beam in search.live]
            first = after
        unfinished = [search for search in unfinished if search.live]
        if unfinished:
            window.keep(kept)
            scores = window.extend([beam.ids[-1:] for search in unfinished for beam in search.live])
