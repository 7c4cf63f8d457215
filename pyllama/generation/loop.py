"""The loop that generates token by token, with the key/value cache around it.

Up to rounding, a text depends only on the seed, its prompt and the settings, not on the rest of the batch.
"""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.generation.choice import choose
from pyllama.generation.session import open_session
from pyllama.generation.settings import NO_RULES, GenerationConfig, Rules
from pyllama.generation.text import Text
from pyllama.generation.window import Window
from pyllama.rng import generator
from pyllama.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Result:
    """The continuation of one prompt."""

    ids: list[int]                          # without the prompt, with the end token if it has one
    text: str | None                        # ends before the stop string; None without a tokenizer
    finish_reason: str                      # "length" (max_new_tokens), "eos" (the end token) or "stop" (a stop string)


class Row:
    """One sequence of the batch, while it is generated."""

    def __init__(self, prompt: list[int], rng: np.random.Generator, text: Text | None, ends: list, room: int,
                 rules: Rules):
        self.known = list(prompt)
        self.ids: list[int] = []
        self.rng, self.text, self.rules = rng, text, rules
        self.finish_reason = "" if room else "length"
        self._ends, self._room = ends, room

    def restrict(self, z):
        """The scores z[V] with -∞ for the tokens that its rules exclude."""
        new = len(self.ids)
        return self.rules.restrict(z, self.known, new, self._room - new, self._ends)

    def add(self, token: int) -> str:
        """Append a token; returns the new text that is certain."""
        self.known.append(token)
        self.ids.append(token)
        self.finish_reason = "eos" if token in self._ends else "length" if len(self.ids) == self._room else ""
        if self.text is None:
            return ""
        piece = self.text.push(token, last=bool(self.finish_reason))
        self.finish_reason = "stop" if self.text.stopped else self.finish_reason
        return piece

    def result(self) -> Result:
        """The tokens and the text so far."""
        return Result(self.ids, self.text.text if self.text else None, self.finish_reason)


def startable(prompt: str, tokenizer: Tokenizer) -> str:
    """The prompt, or a newline if it is empty and the tokenizer has no start token."""
    return prompt if prompt or tokenizer.bos_id is not None else "\n"


def begin(config, prompts, tokenizer: Tokenizer | None, settings: GenerationConfig, rules: Rules) -> list[Row]:
    """num_return_sequences rows for each prompt, each with its own random numbers.

    Raises UserError if a prompt has max_length tokens, or is empty without a start token.
    """
    if settings.stop_strings and tokenizer is None:
        raise UserError("stop_strings need a tokenizer; give one, or remove stop_strings")
    first = tokenizer.bos_id if tokenizer and config.bos_token_id is None else config.bos_token_id
    ends = tokenizer.eos_id if tokenizer and config.eos_token_id is None else config.eos_token_id
    rows, copies = [], Counter[tuple]()             # copies of a prompt get different random numbers
    for prompt in prompts:
        ids = [int(i) for i in prompt] or ([] if first is None else [first])
        if not ids:
            raise UserError("the prompt is empty and the model has no bos_token_id to start with; give a prompt")
        room = settings.max_new_tokens if rules.max_length is None else rules.max_length - len(ids)
        if room < 0 or (room == 0 and rules.max_length is not None):
            raise UserError(f"the prompt has {len(ids)} tokens, and generation_config.json limits it and its "
                            f"continuation to a max_length of {rules.max_length}; set max_new_tokens")
        for _ in range(settings.num_return_sequences):
            rng = generator(settings.seed, "generate", copies[tuple(ids)], *ids)
            text = Text(tokenizer, ids, settings.stop_strings) if tokenizer else None
            rows.append(Row(ids, rng, text, ends if isinstance(ends, list) else [ends], room, rules))
            copies[tuple(ids)] += 1
    return rows


def write(p, c, rows: list[Row], tokenizer, settings: GenerationConfig) -> Iterator[tuple[Row, str]]:
    """Extend the rows until all are finished; yields (row, new text) for every token."""
    # The embedding matrix may have more rows than there are tokens; these ids must not be chosen.
    size = min(c.vocab_size, tokenizer.vocab_size) if tokenizer else c.vocab_size
    live = [row for row in rows if not row.finish_reason]
    if not live:
        return
    longest = max(len(row.known) for row in live) + settings.max_new_tokens
    session = open_session(p, c, len(live), min(longest, c.max_position_embeddings))
    window = Window(session, c.max_position_embeddings)
    new = [row.known for row in live]
    while live:
        for row, z in zip(live, window.extend(new), strict=True):
            yield row, row.add(choose(z[:size], row.known, settings, row.rng, row.restrict))
        unfinished = [i for i, row in enumerate(live) if not row.finish_reason]
        if len(unfinished) < len(live):
            live = [live[i] for i in unfinished]
            window.keep(unfinished)
        new = [row.known[-1:] for row in live]


def generate(params, config, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer | None = None,
             settings: GenerationConfig | None = None, on_token: Callable | None = None,
             rules: Rules = NO_RULES) -> list[Result]:
    """Continue each of the prompts; returns num_return_sequences results for each, in the order of the prompts.

    params, config    the tree of parameters, and the configuration of a model that predicts the next token
    prompts           sequences of ids; an empty one starts from bos_token_id
    tokenizer         to decode the results and find stop_strings; None: ids only
    settings          None: GenerationConfig()
    on_token          on_token(i, id, piece) is called for each token of results[i], whose text is the pieces joined
    rules             which tokens may come next

    A text may be longer than the context (max_position_embeddings): of a prompt the last tokens are read; when the
    context is full, generation continues with its last half, encoded again.

    Raises UserError if a prompt is empty without a start token, or as long as max_length.
    """
    settings = settings or GenerationConfig()
    rows = begin(config, prompts, tokenizer, settings, rules)
    for row, piece in write(params, config, rows, tokenizer, settings):
        if on_token:
            on_token(rows.index(row), row.ids[-1], piece)
    return [row.result() for row in rows]


def stream(params, config, prompt: Sequence[int], tokenizer: Tokenizer,
           settings: GenerationConfig | None = None, rules: Rules = NO_RULES) -> Iterator[str]:
    """Yield the continuation of one prompt in pieces, each as soon as it is certain: generate()'s first result."""
    settings = settings or GenerationConfig()
    rows = begin(config, [prompt], tokenizer, settings, rules)[:1]
    return (piece for _, piece in write(params, config, rows, tokenizer, settings) if piece)
