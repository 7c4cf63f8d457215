"""The loop that generates token by token.

Up to rounding, a text depends only on the seed, its prompt and the settings, not on the rest of the batch.
"""
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyllama.errors import UserError, counted
from pyllama.generation import beam
from pyllama.generation.choice import choose, log_probability
from pyllama.generation.kept import Kept
from pyllama.generation.rules import NO_RULES, Rules
from pyllama.generation.settings import GenerationConfig
from pyllama.generation.speculation import Lookup, Pace
from pyllama.generation.start import Start, is_encoder_decoder, read, starts_of
from pyllama.generation.text import Text
from pyllama.generation.window import Window
from pyllama.rng import generator
from pyllama.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Result:
    """The continuation of one prompt, or the target for one source."""

    ids: list[int]                          # without the prompt, with the end token if it has one
    text: str | None                        # ends before the stop string; None without a tokenizer
    finish_reason: str                      # "length" (no room for more), "eos" (an end token), "stop" (a stop string)
    score: float | None = None              # of a beam search: log p / length^length_penalty
    scores: list[float] | None = None       # with output_scores, without beams: log p of each token


class Row:
    """One sequence of the batch, while it is generated."""

    def __init__(self, start: Start, rng: "np.random.Generator | None", text: Text | None, rules: Rules,
                 with_scores: bool):
        self.known = [*start.ids]
        self.ids: list[int] = []
        self.scores: list[float] | None = [] if with_scores else None
        self.rng, self.text = rng, text
        self.finish_reason = "" if start.room else "length"
        self.restrict = None if rules == NO_RULES else self._restrict
        self.ends = start.ends
        self._rules, self._room = rules, start.room

    def _restrict(self, z):
        """The scores z[V] with -∞ for the tokens that its rules exclude."""
        return self._rules.restrict(z, self.known, len(self.ids), self.left, self.ends)

    @property
    def left(self) -> int:
        """How many tokens may follow."""
        return self._room - len(self.ids)

    def step(self, z, settings: GenerationConfig) -> str:
        """Append a token, whose scores are z[V]; returns the new text that is certain."""
        token = choose(z, self.known, settings, self.rng, self.restrict)
        if self.scores is not None:
            self.scores.append(log_probability(z, token, self.known, settings, self.restrict))
        return self.take(token)

    def take(self, token: int) -> str:
        """Append a token that was chosen; returns the new text that is certain."""
        self.known.append(token)
        return self.add(token)

    def add(self, token: int) -> str:
        """Append a token to the text; returns the part of it that is certain."""
        self.ids.append(token)
        self.finish_reason = "eos" if token in self.ends else "length" if len(self.ids) == self._room else ""
        if self.text is None:
            return ""
        piece = self.text.push(token, last=bool(self.finish_reason))
        self.finish_reason = "stop" if self.text.stopped else self.finish_reason
        return piece

    def result(self, score: float | None = None) -> Result:
        """The tokens and the text so far."""
        return Result(self.ids, self.text.text if self.text else None, self.finish_reason, score, self.scores)


class Generation:
    """The rows of a batch, and the pieces of their texts."""

    def __init__(self, params: dict, config: Any, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer | None,
                 settings: GenerationConfig, rules: Rules, kept: Kept | None = None):
        """Raises UserError if stop_strings lack a tokenizer, min_new_tokens exceeds max_new_tokens, or a prompt does
        not fit: see start.starts_of."""
        rules.require_room(settings.max_new_tokens)
        if settings.stop_strings and tokenizer is None:
            raise UserError("stop_strings need a tokenizer; give one, or remove stop_strings")
        self._params, self._config, self._tokenizer = params, config, tokenizer
        self._settings, self._rules, self._kept = settings, rules, kept
        # The embedding matrix may have more rows than there are tokens; these ids must not be chosen.
        self._size = min(config.vocab_size, tokenizer.vocab_size) if tokenizer else config.vocab_size
        self._starts = starts_of(config, prompts, tokenizer, settings, rules)
        copies = Counter[tuple]()                   # copies of a prompt get different random numbers
        self.rows: list[Row] = []
        for start in self._starts:
            for _ in range(settings.num_return_sequences):
                key = start.source or start.ids
                self.rows.append(self._row(start, copies[key]))
                copies[key] += 1
        self.results: list[Result] = []

    def _row(self, start: Start, copy: int = 0) -> Row:
        """A row with its own random numbers, if it draws its tokens."""
        rng = None if self._settings.greedy else \
            generator(self._settings.seed, "generate", copy, *(start.source or start.ids))
        with_scores = self._settings.output_scores and self._settings.num_beams == 1
        return Row(start, rng, self._text(start), self._rules, with_scores)

    def _text(self, start: Start) -> Text | None:
        shown = [] if is_encoder_decoder(self._config) else [i for i in start.ids if i < self._size]
        return Text(self._tokenizer, shown, self._settings.stop_strings) if self._tokenizer else None

    def _read(self, starts: Sequence[Start]) -> tuple[Window, Any]:
        begin = self._kept.read if self._kept else read
        return begin(self._params, self._config, starts, self._settings.prompt_cache, self._settings.cache)

    def run(self) -> Iterator[tuple[int, int, str]]:
        """Extend all rows until they are finished; yields (number of the row, token, new text) for every token."""
        if self._settings.num_beams > 1:
            yield from self._search()
        else:
            yield from self._write()
            self.results = [row.result() for row in self.rows]

    def _write(self) -> Iterator[tuple[int, int, str]]:
        """Token by token."""
        copies = self._settings.num_return_sequences
        live = [number for number, row in enumerate(self.rows) if not row.finish_reason]
        if not live:
            return
        window, scores = self._read([self._starts[number // copies] for number in live])
        while live:
            for number, z in zip(live, scores, strict=True):
                row = self.rows[number]
                piece = row.step(z[:self._size], self._settings)
                yield number, row.ids[-1], piece
            unfinished = [i for i, number in enumerate(live) if not self.rows[number].finish_reason]
            if len(unfinished) < len(live):
                live = [live[i] for i in unfinished]
                if live:
                    window.keep(unfinished)
            if len(live) == 1 and self._settings.greedy:
                yield from self._write_alone(live[0], window)
                return
            if live:
                scores = window.extend([self.rows[number].known[-1:] for number in live])

    def _write_alone(self, number: int, window: Window) -> Iterator[tuple[int, int, str]]:
        """The rest of one row, with guesses of its next tokens where they pay, and without them several at a time."""
        row, pace = self.rows[number], Pace(self._settings.speculation)
        plain = not row.restrict and row.scores is None and self._settings.repetition_penalty == 1
        lookup = Lookup([*self._starts[number // self._settings.num_return_sequences].source, *row.known])
        while not row.finish_reason:
            known = lookup.guess(min(pace.most, row.left - 1, window.left() - 1))
            guess = known[:pace.guesses()] if known else known
            if plain and not guess:
                yield from self._follow(number, window, lookup, pace, bool(known) or not pace.most)
                continue
            start = time.perf_counter()
            scores = window.extend([[row.known[-1], *guess]], every=bool(guess))
            seconds, right = time.perf_counter() - start, 0
            for z, guessed in zip(scores[0] if guess else scores, [*guess, None], strict=True):
                piece = row.step(z[:self._size], self._settings)
                token = row.ids[-1]
                lookup.add(token)
                yield number, token, piece
                if row.finish_reason or token != guessed:
                    break
                right += 1
            window.forget(len(guess) - right)
            pace.passed(len(guess), right, seconds)

    def _follow(self, number: int, window: Window, lookup: Lookup, pace: Pace, several: bool
                ) -> Iterator[tuple[int, int, str]]:
        """The most likely tokens of one row, several if they may be."""
        row, start = self.rows[number], time.perf_counter()
        most = min(pace.together(), row.left) if several else 1
        ids, scores = window.follow(row.known[-1], most, self._size, [*row.ends])
        passes = max(len(ids), 1)
        pace.passed(0, 0, (time.perf_counter() - start) / passes)
        pace.missed(passes - 1)
        for count, token in enumerate(ids, 1):
            lookup.add(token)
            yield number, token, row.take(token)
            if row.finish_reason:
                window.forget(len(ids) - count)
                break
        if not ids:
            piece = row.step(scores[0][:self._size], self._settings)
            lookup.add(row.ids[-1])
            yield number, row.ids[-1], piece

    def _search(self) -> Iterator[tuple[int, int, str]]:
        """By beams; each text is there when all are."""
        searches = [beam.Search(start, self._settings, self._rules, self._stops(start)) for start in self._starts]
        live = [search for search in searches if search.start.room]
        if live:
            window, scores = self._read([search.start for search in live])
            beam.run(live, window, scores, self._size)
        n = self._settings.num_return_sequences
        for first, search in zip(range(0, len(self.rows), n), searches, strict=True):
            found = search.done[:n] if search.start.room else [beam.Hypothesis([], 0.0)] * n
            if len(found) < n:
                raise UserError(f"num_return_sequences is {n}, but there are only {counted(len(found), 'text')}; lower "
                                f"it, raise max_new_tokens, or relax the rules")
            for number, hypothesis in enumerate(found, first):
                for token in hypothesis.ids:
                    yield number, token, self.rows[number].add(token)
                self.results.append(self.rows[number].result(hypothesis.score))

    def _stops(self, start: Start) -> Callable[[list[int]], bool]:
        """Does a stop string end the text of these ids?"""
        if not self._settings.stop_strings:
            return lambda ids: False

        def stops(ids: list[int]) -> bool:
            text = self._text(start)
            assert text
            for token in ids:
                text.push(token, last=False)
            return text.stopped
        return stops


def startable(prompt: str, tokenizer: Tokenizer) -> str:
    """The prompt, or a newline if it is empty and the tokenizer has no start token."""
    return prompt if prompt or tokenizer.bos_id is not None else "\n"


def generate(params, config, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer | None = None,
             settings: GenerationConfig | None = None, on_token: Callable | None = None,
             rules: Rules = NO_RULES, kept: Kept | None = None) -> list[Result]:
    """Continue each of the prompts; returns num_return_sequences results for each, in the order of the prompts.

    params, config    the tree of parameters, and the configuration of a model that predicts the next token, or of an
                      encoder-decoder: then the prompts are sources, and the results targets
    prompts           sequences of ids; an empty one starts from bos_token_id
    tokenizer         to decode the results and find stop_strings; None: ids only
    settings          None: GenerationConfig()
    on_token          on_token(i, id, piece) is called for each token of results[i], whose text is the pieces joined
    rules             which tokens may come next
    kept              the session of the text before, which the only prompt, of a decoder, may continue: see kept.py

    A text may be longer than the context (max_position_embeddings): see window.py.

    Raises UserError if a prompt is empty without a start token or as long as max_length, if a source is empty, if the
    rules exclude every token, or if a score is not finite.

    >>> import pyllama
    >>> from pyllama.generation import GenerationConfig, generate
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> settings = GenerationConfig(max_new_tokens=3, num_beams=2, num_return_sequences=2)
    >>> [len(result.ids) for result in generate(model.params, model.config, [[5, 3]], settings=settings)]
    [3, 3]
    """
    generation = Generation(params, config, prompts, tokenizer, settings or GenerationConfig(), rules, kept)
    for number, token, piece in generation.run():
        if on_token:
            on_token(number, token, piece)
    return generation.results


def stream(params, config, prompt: Sequence[int], tokenizer: Tokenizer,
           settings: GenerationConfig | None = None, rules: Rules = NO_RULES) -> Iterator[str]:
    """Yield the continuation of one prompt in pieces, each as soon as it is certain: generate()'s first result.

    A beam search is certain of nothing before its end.
    """
    settings = replace(settings or GenerationConfig(), num_return_sequences=1)
    generation = Generation(params, config, [prompt], tokenizer, settings, rules)
    return (piece for _, _, piece in generation.run() if piece)
