"""Speculation without a second model: guess the next tokens from the text itself, and verify them in one pass.

    the text so far     ... the quick brown fox ... the quick
    the guess                                                 brown fox

A pass over k + 1 tokens takes less time than k + 1 passes, because the weights are read once.  The model scores each
guessed token; those up to the first that it would not have written itself are kept, and so the text is the one without
speculation.  It is called prompt lookup elsewhere (Saxena, 2023); verifying is by Leviathan et al. (2023).
"""
from collections.abc import Sequence

NGRAMS = 3, 2                               # lengths of the ends of a text that are looked up, the longest first
DRAFTS = 2, 4, 8, 15                        # numbers of tokens to guess: up to 16 in a pass, a plan's bits are the same
MEMORY = 0.1                                # weight of the newest guess in the rate of right guesses
DELAY = 0.005                               # seconds by which a token may be late that is computed with others
FORGIVING = 0.001                           # how far a chance that is not taken moves the rate toward 1


class Lookup:
    """Guesses the next tokens of a text: those that followed its last tokens where they occurred before."""

    def __init__(self, ids: Sequence[int]):
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}        # n-gram -> the place after its last occurrence but one
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token to the text."""
        # The n-grams that end before it: that of the text's end must not be found itself.
        for n in NGRAMS:
            if len(self._ids) >= n:
                self._after[tuple(self._ids[-n:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """At most so many tokens; none if the end of the text is new."""
        for n in NGRAMS:
            place = self._after.get(tuple(self._ids[-n:]))
            if place is not None:
                return self._ids[place:place + most]
        return []


class Pace:
    """Decides how many tokens to guess, from the times of passes and the share of right guesses so far.

    With the chance α that a guess is right after right ones, a pass with k guesses is expected to give
    1 + α + ... + α^k = (1 - α^(k+1)) / (1 - α) tokens.  The k with the most tokens per second is taken; with k = 0 a
    pass has no guesses.  A k that was not tried is assumed to cost no more than the next smaller one, so it is tried
    when it could pay.  While none pays, α is slowly forgiven, so that a text which begins to repeat itself is noticed.
    """

    def __init__(self, speculation: str = "auto"):
        """speculation    "auto", "off", or a number: guess so many tokens always, at most the last of DRAFTS"""
        self._fixed = 0 if speculation == "off" else int(speculation) if speculation.isdecimal() else None
        self.most = DRAFTS[-1] if self._fixed is None else min(self._fixed, DRAFTS[-1])
        self._rate = 1.0                            # α
        self._seconds: dict[int, float] = {}        # of a pass with so many guesses

    def guesses(self) -> int:
        """How many tokens to guess now."""
        if self._fixed is not None:
            return self._fixed
        if 0 not in self._seconds:
            return 0                                # to measure it
        rate, seconds = min(self._rate, 0.999), self._seconds[0]
        best, per_second = 0, 1 / seconds
        for k in DRAFTS:
            seconds = self._seconds.get(k, seconds)
            tokens = (1 - rate ** (k + 1)) / (1 - rate)
            if tokens / seconds > per_second:
                best, per_second = k, tokens / seconds
        if not best:
            self.missed(1)
        return best

    def missed(self, chances: int) -> None:
        """Learn that no guess was made, though there may have been so many."""
        self._rate += (1 - (1 - FORGIVING) ** chances) * (1 - self._rate)

    def together(self) -> int:
        """How many passes without guesses may be computed before the first token is shown."""
        return max(1, int(DELAY / self._seconds[0])) if 0 in self._seconds else 1

    def passed(self, guessed: int, right: int, seconds: float) -> None:
        """Learn from a pass: how many tokens were guessed, how many of them were right, and how long it took."""
        for is_right in [1] * right + [0] * (right < guessed):
            self._rate += MEMORY * (is_right - self._rate)
        size = max((k for k in (0, *DRAFTS) if k <= guessed), default=0)
        before = self._seconds.get(size, seconds)
        self._seconds[size] = min(seconds, 1.05 * before)       # a pause of the machine is not remembered for long
