"""The text of generated tokens, up to a stop string."""
from collections.abc import Sequence

from pyllama.text.tokenizer import Tokenizer

LAST = 0x10ffff                                     # characters from here down stand for special tokens


class Text:
    """Decodes tokens one at a time, up to a stop string.

    A special token is not part of the text, but a stop string may name it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: Sequence[str]):
        self.stopped = False
        self._marked, self._shown = "", 0           # the text with marks, and how much of it was returned
        self._stream = tokenizer.stream(skip_special_tokens=True)
        special = {i: str(tokenizer.rust.id_to_token(i)) for i in tokenizer.special_ids}
        named = sorted((i for i, name in special.items() if any(name in stop for stop in stops)),
                       key=lambda i: -len(special[i]))          # a longer name may contain a shorter one
        self._marks = {i: chr(LAST - n) for n, i in enumerate(named)}
        self._unmarked = str.maketrans(dict.fromkeys(self._marks.values()))
        self._stops = [*stops]                      # in the text, and in the text with marks
        for stop in stops if named else ():
            for i in named:
                stop = stop.replace(special[i], self._marks[i])
            self._stops.append(stop)
        for token in prompt:                        # some decoders drop a space at the start of a text
            self._stream.push(token)

    @property
    def text(self) -> str:
        """The text so far; it ends before the stop string."""
        return self._marked.translate(self._unmarked)

    def push(self, token: int, last: bool) -> str:
        """The new text that is certain: without a partial character, or the possible beginning of a stop string."""
        self._marked += self._stream.push(token)
        if last or token in self._marks:
            self._marked += self._stream.flush()
        self._marked += self._marks.get(token, "")
        # The first to end, not to begin, so that the result does not depend on the tokenization.
        stop_at = min(((at + len(stop), at) for stop in self._stops
                       if (at := self._marked.find(stop, self._shown)) >= 0), default=None)
        if stop_at:
            self._marked, self.stopped = self._marked[:stop_at[1]], True
        certain = len(self._marked) - (0 if last or stop_at else unsure(self._marked, self._stops))
        piece, self._shown = self._marked[self._shown:certain], certain
        return piece.translate(self._unmarked)


def unsure(text: str, stops: Sequence[str]) -> int:
    """The number of characters at the end of the text that may begin a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
