"""Rules for the tokens of a text, which a person or a model's files may set.

The order is Hugging Face's: bans of repetitions, of bad words and of an early end; then tokens that are forced,
whatever was banned; then tokens that are suppressed.
"""
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.generation.settings import of_files

EXCLUDED = "suppress_tokens and the other rules, which generation_config.json may set, exclude every token; relax them"


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
    forced_eos_token_id: int | Sequence[int] | None = of_files(None)

    def __post_init__(self):
        for name in ("min_new_tokens", "no_repeat_ngram_size", "min_length"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")

    def has_room(self, max_new_tokens: int) -> bool:
        """May a text be as long as it has to be?

        With max_length, max_new_tokens does not count; with an end that is forced, min_new_tokens does not.
        """
        counts = self.max_length is None and self.forced_eos_token_id is None
        return not counts or self.min_new_tokens <= max_new_tokens

    def require_room(self, max_new_tokens: int) -> None:
        """Raise UserError if a text would have to be longer than it may be."""
        if not self.has_room(max_new_tokens):
            raise UserError(f"min_new_tokens is {self.min_new_tokens}, but max_new_tokens is {max_new_tokens}; raise "
                            f"max_new_tokens, or lower min_new_tokens")

    def restrict(self, z, ids: Sequence[int], new: int, left: int, ends: Collection[int]):
        """The scores z[V], with -∞ for the tokens that may not follow `ids`.

        new     how many of the ids were generated
        left    how many may follow
        ends    the end tokens
        """
        if self == NO_RULES:
            return z
        forced = self._forced(len(ids), left)
        if forced:
            z = only(z, forced)
            banned: set = set()
        else:
            z = z.copy()
            banned = {*self._repeating(list(ids)), *self._bad(list(ids), ends)}
            if new < self.min_new_tokens or len(ids) < self.min_length:
                banned.update(ends)
        banned.update(self.suppress_tokens)
        # After a forced first token, the next one counts as the first.
        begin = 1 if self.forced_bos_token_id is not None and len(ids) - new == 1 else 0
        if new == begin:
            banned.update(self.begin_suppress_tokens)
        z[[i for i in banned if i < len(z)]] = -np.inf
        return z

    def _forced(self, length: int, left: int) -> list[int]:
        """The tokens of which one must come now; none: any may."""
        if left == 1 and self.forced_eos_token_id is not None:
            return listed(self.forced_eos_token_id)
        if length == 1 and self.forced_bos_token_id is not None:
            return [self.forced_bos_token_id]
        return []

    def _repeating(self, ids: list[int]) -> Iterator[int]:
        """The tokens that would complete an n-gram that occurred before."""
        before = self.no_repeat_ngram_size - 1
        places = range(len(ids) - before) if 0 <= before <= len(ids) else ()
        last = ids[len(ids) - before:]
        return (ids[i + before] for i in places if ids[i:i + before] == last)

    def _bad(self, ids: list[int], ends: Collection[int]) -> Iterator[int]:
        """The tokens that would complete one of bad_words_ids."""
        return (last for *words, last in self.bad_words_ids
                if (words or last not in ends) and len(words) <= len(ids) and ids[len(ids) - len(words):] == words)


NO_RULES = Rules()


def listed(ids: int | Sequence[int] | None) -> list[int]:
    """The ids of a field that holds one, several or none."""
    return [] if ids is None else [ids] if isinstance(ids, int) else [*ids]


def only(z, ids: Sequence[int]):
    """Scores like z[V] that allow only these tokens, each with the score 0."""
    z = np.full_like(z, -np.inf)
    z[[i for i in ids if i < len(z)]] = 0
    return z
