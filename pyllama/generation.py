"""Text from a model: the key/value cache, the choice of the next token, and the loop around them.

    scores z[V]  ->  repetition_penalty  ->  temperature  ->  top_k  ->  top_p  ->  min_p  ->  softmax  ->  draw

in Hugging Face's order; without sampling, the highest score after the penalty.  A token that is ruled out has the
score -∞, so that the softmax renormalizes the others.

A text depends on the seed, its prompt and the settings alone, up to rounding: not on what else is in the batch.
"""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pyllama.device import host
from pyllama.errors import UserError
from pyllama.machine import one_blas_thread
from pyllama.models import WriterModule
from pyllama.models.kv_cache import new_cache
from pyllama.ops import softmax
from pyllama.params import leaves
from pyllama.rng import generator
from pyllama.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class GenerationConfig:
    """How to continue a text, under the names of Hugging Face's generate().  Raises UserError for an invalid value.

    >>> GenerationConfig(do_sample=True, temperature=0.8, top_k=40).greedy
    False
    """

    max_new_tokens: int = 100               # maximum number of tokens to generate
    do_sample: bool = False                 # sample the next token instead of taking the most likely one
    temperature: float = 1.0                # divisor of the logits: below 1 less random, above 1 more random
    seed: int = 0                           # seed of the sampling
    top_k: int = 0                          # sample from the k most likely tokens; 0: from all
    top_p: float = 1.0                      # sample from the smallest set of likely tokens with total probability p
    min_p: float = 0.0                      # sample from tokens at least p times as likely as the most likely one
    repetition_penalty: float = 1.0         # above 1: tokens that already occurred become less likely
    num_return_sequences: int = 1           # number of texts for each prompt
    stop_strings: tuple[str, ...] = ()      # stop before the first of these strings

    def __post_init__(self):
        for name, fits, rule in (
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature < np.inf, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0, where 0 means all"),
            ("top_p", 0 < self.top_p <= 1, "in 0 < p <= 1, where 1 means all"),
            ("min_p", 0 <= self.min_p <= 1, "in 0 <= p <= 1, where 0 means all"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0, where 1 means none"),
            ("num_return_sequences", self.num_return_sequences >= 1, "at least 1"),
            ("stop_strings", not isinstance(self.stop_strings, str) and all(self.stop_strings), "non-empty texts"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {rule}")
        for name in () if self.do_sample else ("top_k", "top_p", "min_p", "temperature"):
            if getattr(self, name) not in (getattr(GenerationConfig, name), 0):
                raise UserError(f"{name} has no effect without sampling; set do_sample, or leave {name} out")
        if self.greedy and self.num_return_sequences > 1:
            raise UserError("num_return_sequences above 1 needs do_sample and a temperature above 0")

    @property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0


@dataclass(frozen=True)
class Result:
    """What was written after one prompt."""

    ids: list[int]                          # without the prompt, with the end token where there is one
    text: str | None                        # ends before the stop string; None without a tokenizer
    finish_reason: str                      # "length": max_new_tokens; "eos": the end token; "stop": a stop string


# The choice of a token: scores z[V] to scores

def repetition_penalty(z, seen, r: float):
    """z_i / r where z_i > 0, else z_i · r, for the ids i in `seen` (Keskar et al., 2019, section 4.1)."""
    z = z.copy()
    z[seen] = np.where(z[seen] > 0, z[seen] / r, z[seen] * r)
    return z


def top_k(z, k: int):
    """The k highest scores, and those equal to the k-th."""
    return z if k in (0, z.size) or k > z.size else np.where(z >= np.partition(z, -k)[-k], z, -np.inf)


def top_p(z, p: float):
    """The shortest run of the likeliest tokens whose probabilities reach p: the one that crosses p is in.

    With tokens in falling order, n stays if Σ_{m<n} p_m < p; the first always does (Holtzman et al., 2020).
    """
    if p == 1:
        return z
    order = np.argsort(-z, kind="stable")
    falling = softmax(z[order])[0]
    z = z.copy()
    z[order[np.cumsum(falling) - falling >= p]] = -np.inf
    return z


def min_p(z, p: float):
    """The tokens with p_i ≥ p · max_j p_j, that is z_i ≥ max_j z_j + log p (Nguyen et al., 2024)."""
    return z if p == 0 else np.where(z >= z.max() + np.log(p), z, -np.inf)


def distribution(z, settings: GenerationConfig):
    """The probabilities [V] that the next token is drawn from."""
    s = settings
    return softmax(min_p(top_p(top_k(z / s.temperature, s.top_k), s.top_p), s.min_p))[0]


def draw(p, u: float) -> int:
    """The first id whose cumulative probability exceeds u, a number in 0 ≤ u < 1: id i with probability p_i."""
    total = np.cumsum(p)
    return int(np.searchsorted(total, u * total[-1], side="right"))


def choose(z, seen, settings: GenerationConfig, rng: np.random.Generator) -> int:
    """The next id, from its scores z[V] and the ids before it."""
    if not np.isfinite(z).all():
        raise UserError("the model's scores are not numbers: it diverged in training; use an earlier checkpoint")
    z = repetition_penalty(z.astype(np.float64), seen, settings.repetition_penalty)
    return int(z.argmax()) if settings.greedy else draw(distribution(z, settings), rng.random())


# The text

class Text:
    """The text of tokens that come one at a time, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: Sequence[str]):
        self.text, self.stopped = "", False
        self._stops, self._shown = stops, 0
        self._stream = tokenizer.stream(skip_special_tokens=True)
        for token in prompt:                        # some decoders drop a space at the very start, and only there
            self._stream.push(token)

    def push(self, token: int, last: bool) -> str:
        """The text that is certain now: no half character, and nothing a stop string may begin with."""
        self.text += self._stream.push(token) + (self._stream.flush() if last else "")
        # The first to end, not to begin: then it does not matter how the text is cut into tokens.
        stop_at = min(((at + len(stop), at) for stop in self._stops
                       if (at := self.text.find(stop, self._shown)) >= 0), default=None)
        if stop_at:
            self.text, self.stopped = self.text[:stop_at[1]], True
        certain = len(self.text) - (0 if last or stop_at else unsure(self.text, self._stops))
        piece, self._shown = self.text[self._shown:certain], certain
        return piece


def unsure(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text a stop string may begin with."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


# The loop

class Row:
    """One sequence of the batch, in the making."""

    def __init__(self, prompt: list[int], rng: np.random.Generator, text: Text | None, ends: list, room: int):
        self.known, self.start = list(prompt), 0    # the model sees known[start:]
        self.ids: list[int] = []
        self.rng, self.text = rng, text
        self.finish_reason = "" if room else "length"
        self._ends, self._room = ends, room

    def add(self, token: int) -> str:
        """Append a token; returns the text that is certain by now."""
        self.known.append(token)
        self.ids.append(token)
        self.finish_reason = "eos" if token in self._ends else "length" if len(self.ids) == self._room else ""
        if self.text is None:
            return ""
        piece = self.text.push(token, last=bool(self.finish_reason))
        self.finish_reason = "stop" if self.text.stopped else self.finish_reason
        return piece

    def slide(self, context: int) -> bool:
        """If the model would see more tokens than its context holds, let it see the last half of them only."""
        if full := len(self.known) - self.start > context:
            self.start = len(self.known) - max(1, context // 2)
        return full

    def result(self) -> Result:
        return Result(self.ids, self.text.text if self.text else None, self.finish_reason)


def startable(prompt: str, tokenizer: Tokenizer) -> str:
    """The prompt; a line end where it is empty and the tokenizer has no token that starts a text."""
    return prompt if prompt or tokenizer.bos_id is not None else "\n"


def begin(config, prompts, tokenizer: Tokenizer | None, settings: GenerationConfig) -> list[Row]:
    """num_return_sequences rows for each prompt, each with random numbers of its own."""
    if settings.stop_strings and tokenizer is None:
        raise UserError("stop_strings need a tokenizer to be found in the text; give one, or leave them out")
    first = tokenizer.bos_id if tokenizer and config.bos_token_id is None else config.bos_token_id
    ends = tokenizer.eos_id if tokenizer and config.eos_token_id is None else config.eos_token_id
    rows, copies = [], Counter[tuple]()             # a prompt that is there again continues differently
    for prompt in prompts:
        ids = [int(i) for i in prompt] or ([] if first is None else [first])
        if not ids:
            raise UserError("the prompt is empty and the model has no bos_token_id to begin with; give it a prompt")
        if len(ids) > config.max_position_embeddings:
            raise UserError(f"the prompt has {len(ids)} tokens, but the model's window (max_position_embeddings) "
                            f"holds {config.max_position_embeddings}; shorten it")
        for _ in range(settings.num_return_sequences):
            rng = generator(settings.seed, "generate", copies[tuple(ids)], *ids)
            text = Text(tokenizer, ids, settings.stop_strings) if tokenizer else None
            rows.append(Row(ids, rng, text, ends if isinstance(ends, list) else [ends], settings.max_new_tokens))
            copies[tuple(ids)] += 1
    return rows


def padded(sequences: list[list[int]]):
    """ids [B T] with the shorter sequences filled up on the left, so that all end at one place; mask [B T], 0 there."""
    T = max(map(len, sequences))
    return (np.array([[0] * (T - len(s)) + s for s in sequences]),
            np.array([[0] * (T - len(s)) + [1] * len(s) for s in sequences]))


def write(p, c, rows: list[Row], tokenizer, settings: GenerationConfig) -> Iterator[tuple[Row, str]]:
    """Extend the rows until all are finished; yields (row, the text that add() returned) for every token."""
    # An embedding may be padded to a round number of rows: an id that no token has must not be chosen.
    size = min(c.vocab_size, tokenizer.vocab_size) if tokenizer else c.vocab_size
    caches, context = None, c.max_position_embeddings
    model: WriterModule = c.model
    table = next(leaves(p))[1]
    live = [row for row in rows if not row.finish_reason]
    while live:
        slid = [row.slide(context) for row in live]
        if caches is None or any(slid):
            # Every layer's keys depend on all tokens seen before: when some leave the window, all are made anew.
            ids, mask = padded([row.known[row.start:] for row in live])
            room = min(context, ids.shape[1] + settings.max_new_tokens)
            caches = new_cache(c, len(live), table, room)
        else:
            ids = np.array([row.known[-1:] for row in live])
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        seen = None if mask.all() else np.asarray(mask, like=table)
        with one_blas_thread():
            scores = host(model.next_scores(np.asarray(ids, like=table), p, c, mask=seen, caches=caches))
        for row, z in zip(live, scores, strict=True):
            yield row, row.add(choose(z[:size], row.known, settings, row.rng))
        going = [i for i, row in enumerate(live) if not row.finish_reason]
        if len(going) < len(live):
            live, mask = [live[i] for i in going], mask[going]
            for cache in caches:
                cache.keep(going)


def generate(params, config, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer | None = None,
             settings: GenerationConfig | None = None, on_token: Callable | None = None) -> list[Result]:
    """Continue each of the prompts, sequences of ids; num_return_sequences results for each, in the prompts' order.

    An empty prompt starts from bos_token_id.  A text may outgrow max_position_embeddings: whenever that window is full,
    the model goes on with the last half of it, encoded again.  on_token(i, id, piece) is called for each token of
    results[i], whose text is the pieces joined.

    Raises UserError if a prompt is longer than the window, or empty with nothing to start from.
    """
    settings = settings or GenerationConfig()
    rows = begin(config, prompts, tokenizer, settings)
    for row, piece in write(params, config, rows, tokenizer, settings):
        if on_token:
            on_token(rows.index(row), row.ids[-1], piece)
    return [row.result() for row in rows]


def stream(params, config, prompt: Sequence[int], tokenizer: Tokenizer,
           settings: GenerationConfig | None = None) -> Iterator[str]:
    """The text after one prompt, in pieces, as soon as each is certain: generate()'s first result, if joined."""
    settings = settings or GenerationConfig()
    rows = begin(config, [prompt], tokenizer, settings)[:1]
    return (piece for _, piece in write(params, config, rows, tokenizer, settings) if piece)
