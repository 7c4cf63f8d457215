"""Text generation: the choice of the next token, and the loop with the key/value cache around it.

    scores z[V]  ->  repetition_penalty  ->  temperature  ->  top_k  ->  top_p  ->  min_p  ->  softmax  ->  draw

The order is Hugging Face's.  Without sampling, the token with the highest score after the penalty is taken.  A token
that is ruled out has the score -∞, so the softmax renormalizes the others.

Up to rounding, a text depends only on the seed, its prompt and the settings, not on the rest of the batch.
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

    >>> from pyllama.generation import GenerationConfig
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
            ("stop_strings", not isinstance(self.stop_strings, str) and all(self.stop_strings),
             "a sequence of non-empty strings"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {rule}")
        for name in () if self.do_sample else ("top_k", "top_p", "min_p", "temperature"):
            if getattr(self, name) not in (getattr(GenerationConfig, name), 0):
                raise UserError(f"{name} has no effect without sampling; set do_sample, or remove {name}")
        if self.greedy and self.num_return_sequences > 1:
            raise UserError("num_return_sequences above 1 needs do_sample and a temperature above 0")

    @property
    def greedy(self) -> bool:
        """Is the most likely token always taken?"""
        return not self.do_sample or self.temperature == 0


@dataclass(frozen=True)
class Result:
    """The continuation of one prompt."""

    ids: list[int]                          # without the prompt, with the end token if it has one
    text: str | None                        # ends before the stop string; None without a tokenizer
    finish_reason: str                      # "length" (max_new_tokens), "eos" (the end token) or "stop" (a stop string)


# The choice of a token: scores z[V] to scores

def repetition_penalty(z, seen, r: float):
    """z_i / r if z_i > 0, else z_i · r, for the ids i in `seen` (Keskar et al., 2019, section 4.1)."""
    z = z.copy()
    z[seen] = np.where(z[seen] > 0, z[seen] / r, z[seen] * r)
    return z


def top_k(z, k: int):
    """Keep the k highest scores z[V], and those equal to the k-th."""
    if k == 0 or k >= z.size:
        return z
    return np.where(z >= np.partition(z, -k)[-k], z, -np.inf)


def top_p(z, p: float):
    """Keep the smallest set of the most likely tokens whose total probability reaches p (Holtzman et al., 2020).

    With tokens in order of falling probability, token n is kept if Σ_{m<n} p_m < p; the first always is.
    """
    if p == 1:
        return z
    order = np.argsort(-z, kind="stable")
    descending = softmax(z[order])[0]
    z = z.copy()
    z[order[np.cumsum(descending) - descending >= p]] = -np.inf
    return z


def min_p(z, p: float):
    """Keep the tokens with p_i ≥ p · max_j p_j, that is z_i ≥ max_j z_j + log p (Nguyen et al., 2024)."""
    return z if p == 0 else np.where(z >= z.max() + np.log(p), z, -np.inf)


def distribution(z, settings: GenerationConfig):
    """The probabilities [V] from which the next token is drawn."""
    s = settings
    return softmax(min_p(top_p(top_k(z / s.temperature, s.top_k), s.top_p), s.min_p))[0]


def draw(p, u: float) -> int:
    """The first id whose cumulative probability exceeds u in 0 ≤ u < 1; for uniform u it is i with probability p_i."""
    total = np.cumsum(p)
    return int(np.searchsorted(total, u * total[-1], side="right"))


def choose(z, seen, settings: GenerationConfig, rng: np.random.Generator) -> int:
    """The next id, given its scores z[V] and the ids before it.  Raises UserError if a score is not finite."""
    if not np.isfinite(z).all():
        raise UserError("the model's scores are not finite, because its training diverged; use an earlier checkpoint")
    z = repetition_penalty(z.astype(np.float64), seen, settings.repetition_penalty)
    return int(z.argmax()) if settings.greedy else draw(distribution(z, settings), rng.random())


# The text

class Text:
    """Decodes tokens one at a time, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: Sequence[str]):
        self.text, self.stopped = "", False
        self._stops, self._shown = stops, 0
        self._stream = tokenizer.stream(skip_special_tokens=True)
        for token in prompt:                        # some decoders drop a space at the start of a text
            self._stream.push(token)

    def push(self, token: int, last: bool) -> str:
        """The new text that is certain: without a partial character, or the possible beginning of a stop string."""
        self.text += self._stream.push(token) + (self._stream.flush() if last else "")
        # The first to end, not to begin, so that the result does not depend on the tokenization.
        stop_at = min(((at + len(stop), at) for stop in self._stops
                       if (at := self.text.find(stop, self._shown)) >= 0), default=None)
        if stop_at:
            self.text, self.stopped = self.text[:stop_at[1]], True
        certain = len(self.text) - (0 if last or stop_at else unsure(self.text, self._stops))
        piece, self._shown = self.text[self._shown:certain], certain
        return piece


def unsure(text: str, stops: Sequence[str]) -> int:
    """The number of characters at the end of the text that may begin a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


# The loop

class Row:
    """One sequence of the batch, while it is generated."""

    def __init__(self, prompt: list[int], rng: np.random.Generator, text: Text | None, ends: list, room: int):
        self.known, self.start = list(prompt), 0    # the model's input is known[start:]
        self.ids: list[int] = []
        self.rng, self.text = rng, text
        self.finish_reason = "" if room else "length"
        self._ends, self._room = ends, room

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

    def slide(self, context: int) -> bool:
        """If the input is longer than the context, shorten it to the last half of the context.  True if it was."""
        if full := len(self.known) - self.start > context:
            self.start = len(self.known) - max(1, context // 2)
        return full

    def result(self) -> Result:
        """The tokens and the text so far."""
        return Result(self.ids, self.text.text if self.text else None, self.finish_reason)


def startable(prompt: str, tokenizer: Tokenizer) -> str:
    """The prompt, or a newline if it is empty and the tokenizer has no start token."""
    return prompt if prompt or tokenizer.bos_id is not None else "\n"


def begin(config, prompts, tokenizer: Tokenizer | None, settings: GenerationConfig) -> list[Row]:
    """num_return_sequences rows for each prompt, each with its own random numbers.

    Raises UserError if a prompt is longer than the context, or empty without a start token.
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
        check_length(ids, config)
        for _ in range(settings.num_return_sequences):
            rng = generator(settings.seed, "generate", copies[tuple(ids)], *ids)
            text = Text(tokenizer, ids, settings.stop_strings) if tokenizer else None
            rows.append(Row(ids, rng, text, ends if isinstance(ends, list) else [ends], settings.max_new_tokens))
            copies[tuple(ids)] += 1
    return rows


def check_length(ids: Sequence[int], config) -> None:
    """Raise UserError if the prompt has more tokens than the model has positions."""
    if len(ids) > config.max_position_embeddings:
        raise UserError(f"the prompt has {len(ids)} tokens, but the model's context (max_position_embeddings) "
                        f"is {config.max_position_embeddings}; shorten it")


def padded(sequences: list[list[int]]):
    """(ids [B T], mask [B T]): the sequences padded on the left; the mask is 0 at padding."""
    T = max(map(len, sequences))
    return (np.array([[0] * (T - len(s)) + s for s in sequences]),
            np.array([[0] * (T - len(s)) + [1] * len(s) for s in sequences]))


def write(p, c, rows: list[Row], tokenizer, settings: GenerationConfig) -> Iterator[tuple[Row, str]]:
    """Extend the rows until all are finished; yields (row, new text) for every token."""
    # The embedding matrix may have more rows than there are tokens; these ids must not be chosen.
    size = min(c.vocab_size, tokenizer.vocab_size) if tokenizer else c.vocab_size
    caches, context = None, c.max_position_embeddings
    model: WriterModule = c.model
    table = next(leaves(p))[1]
    live = [row for row in rows if not row.finish_reason]
    while live:
        slid = [row.slide(context) for row in live]
        if caches is None or any(slid):
            # A layer's keys depend on all previous tokens.  When some leave the window, all keys are computed again.
            ids, mask = padded([row.known[row.start:] for row in live])
            room = min(context, ids.shape[1] + settings.max_new_tokens)
            caches = new_cache(c, len(live), table, room)
        else:
            ids = np.array([row.known[-1:] for row in live])
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        padding = None if mask.all() else np.asarray(mask, like=table)
        with one_blas_thread():
            scores = host(model.next_scores(np.asarray(ids, like=table), p, c, mask=padding, caches=caches))
        for row, z in zip(live, scores, strict=True):
            yield row, row.add(choose(z[:size], row.known, settings, row.rng))
        unfinished = [i for i, row in enumerate(live) if not row.finish_reason]
        if len(unfinished) < len(live):
            live, mask = [live[i] for i in unfinished], mask[unfinished]
            for cache in caches:
                cache.keep(unfinished)


def generate(params, config, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer | None = None,
             settings: GenerationConfig | None = None, on_token: Callable | None = None) -> list[Result]:
    """Continue each of the prompts; returns num_return_sequences results for each, in the order of the prompts.

    params, config    the tree of parameters, and the configuration of a model that predicts the next token
    prompts           sequences of ids; an empty one starts from bos_token_id
    tokenizer         to decode the results and find stop_strings; None: ids only
    settings          None: GenerationConfig()
    on_token          on_token(i, id, piece) is called for each token of results[i], whose text is the pieces joined

    A text may be longer than the context (max_position_embeddings): when the context is full, generation continues
    with its last half, encoded again.

    Raises UserError if a prompt is longer than the context, or empty without a start token.
    """
    settings = settings or GenerationConfig()
    rows = begin(config, prompts, tokenizer, settings)
    for row, piece in write(params, config, rows, tokenizer, settings):
        if on_token:
            on_token(rows.index(row), row.ids[-1], piece)
    return [row.result() for row in rows]


def stream(params, config, prompt: Sequence[int], tokenizer: Tokenizer,
           settings: GenerationConfig | None = None) -> Iterator[str]:
    """Yield the continuation of one prompt in pieces, each as soon as it is certain: generate()'s first result."""
    settings = settings or GenerationConfig()
    rows = begin(config, [prompt], tokenizer, settings)[:1]
    return (piece for _, piece in write(params, config, rows, tokenizer, settings) if piece)
