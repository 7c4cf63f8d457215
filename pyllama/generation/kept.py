"""A session that outlives a generation, for prompts that continue one another, such as those of a chat."""
from collections.abc import Sequence
from typing import Any

from pyllama.generation.start import Start, read
from pyllama.generation.window import Window


class Kept:
    """Keeps the session of one sequence.  Of the next prompt, only what differs from the text so far is read.

        kept = Kept()
        generate(params, config, [prompt], tokenizer, settings, kept=kept)
        generate(params, config, [prompt + answer + question], tokenizer, settings, kept=kept)

    The model must be the same each time.
    """

    def __init__(self):
        self._window: Window | None = None

    def read(self, params: dict, config: Any, starts: Sequence[Start], cached: str | None = None,
             cache: str = "full") -> tuple[Window, Any]:
        """See start.read; there is one start, of a decoder.  A new session begins with the prompt cache."""
        start, = starts
        if self._window is None or len(self._window.session.lengths) != 1:          # a beam search has left several
            self._window, scores = read(params, config, starts, cached, cache)
            return self._window, scores
        first = self._window.rewind(start.ids[:-1])
        return self._window, self._window.extend([[*start.ids[first:]]])
