"""How to continue a text: the settings of a person, and the rules that a model's files may set for its tokens."""
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyllama.errors import UserError


@dataclass(frozen=True)
class GenerationConfig:
    """How to continue a text, under the names of Hugging Face's generate().  Raises UserError for an invalid value.

    >>> from pyllama.generation import GenerationConfig
    >>> GenerationConfig(do_sample=True, temperature=0.8, top_k=40).greedy
    False
    """

    max_new_tokens: int = 100               # maximum number of tokens to generate
    do_sample: bool = False                 # sample the next token instead of taking the most likely one
    temperature: float = 1.0                # divisor of the logits; 0: the most likely token (default: see above)
    seed: int = 0                           # seed of the sampling
    top_k: int = 0                          # sample from the k most likely tokens; 0: from all (default: see above)
    top_p: float = 1.0                      # sample from the smallest set of likely tokens with total probability p
    min_p: float = 0.0                      # sample from tokens at least p times as likely as the most likely one
    repetition_penalty: float = 1.0         # above 1: tokens that already occurred become less likely
    num_return_sequences: int = 1           # number of texts for each prompt
    stop_strings: tuple[str, ...] = ()      # stop before the first of these strings

    def __post_init__(self):
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        for name, fits, rule in (
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature < np.inf, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0, where 0 means all"),
            ("top_p", 0 < self.top_p <= 1, "in 0 < p <= 1, where 1 means all"),
            ("min_p", 0 <= self.min_p <= 1, "in 0 <= p <= 1, where 0 means all"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0, where 1 means none"),
            ("num_return_sequences", self.num_return_sequences >= 1, "at least 1"),
            ("stop_strings", are_strings(self.stop_strings), "a sequence of non-empty strings, or one"),
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


def are_strings(values: object) -> bool:
    """Are these a list or a tuple of strings, none of them empty?"""
    return isinstance(values, list | tuple) and all(isinstance(value, str) and value for value in values)


def of_files(default: Any = ()) -> Any:
    """A field that a model's files set, not the command line."""
    return field(default=default, metadata={"flag": False})


@dataclass(frozen=True)
class Rules:
    """Which tokens may come next, under the names of Hugging Face's generate().

    A token counts for min_length, max_length and no_repeat_ngram_size whether it is generated or in the prompt.  Of an
    encoder-decoder only the target counts, with its start token.
    """

    min_new_tokens: int = 0                 # no end token before so many tokens were generated
    no_repeat_ngram_size: int = 0           # no sequence of so many tokens occurs twice; 0: any may
    min_length: int = of_files(0)
    max_length: int | None = of_files(None)
    bad_words_ids: Sequence[Sequence[int]] = of_files()
    suppress_tokens: Sequence[int] = of_files()
    begin_suppress_tokens: Sequence[int] = of_files()
    forced_bos_token_id: int | None = of_files(None)
    forced_eos_token_id: int | None = of_files(None)

    def __post_init__(self):
        for name in ("min_new_tokens", "no_repeat_ngram_size", "min_length"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")

    def restrict(self, z, ids: Sequence[int], new: int, left: int, ends: Collection[int]):
        """The scores z[V], with -∞ for the tokens that may not follow `ids`.

        new     how many of the ids were generated
        left    how many may follow
        ends    the end tokens
        """
        if self == NO_RULES:
            return z
        if len(ids) == 1 and self.forced_bos_token_id is not None:
            return only(z, self.forced_bos_token_id)
        if left == 1 and self.forced_eos_token_id is not None:
            return only(z, self.forced_eos_token_id)
        banned = {*self.suppress_tokens, *(() if new else self.begin_suppress_tokens), *self._repeating(list(ids)),
                  *self._bad(list(ids), ends)}
        if new < self.min_new_tokens or len(ids) < self.min_length:
            banned.update(ends)
        z = z.copy()
        z[[i for i in banned if i is not None and i < len(z)]] = -np.inf
        return z

    def _repeating(self, ids):
        """The tokens that would complete an n-gram that occurred before."""
        before = self.no_repeat_ngram_size - 1
        places = range(len(ids) - before) if 0 <= before <= len(ids) else ()
        last = ids[len(ids) - before:]
        return (ids[i + before] for i in places if ids[i:i + before] == last)

    def _bad(self, ids, ends):
        """The tokens that would complete one of bad_words_ids."""
        return (last for *words, last in self.bad_words_ids
                if (words or last not in ends) and len(words) <= len(ids) and ids[len(ids) - len(words):] == words)


NO_RULES = Rules()


def only(z, i: int):
    """Scores like z[V] that allow only the token i."""
    z = np.full_like(z, -np.inf)
    z[i] = 0
    return z
