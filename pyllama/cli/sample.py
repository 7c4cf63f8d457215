"""A prompt from the text that a model learns, and a sample of what it writes, shown while it trains."""
import contextlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllama.cli.output import quoted
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, stream
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Tokens

# What the command generate does where neither a flag nor generation_config.json says it: nanoGPT's values.
BASE: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 200}
READ, PROMPT, WIDTH = 64, 20, 78                            # tokens to find a prompt in; its characters; of a sample


def prompt_from(tokens: Tokens, tokenizer: Tokenizer) -> str:
    """The first words of a text, on one line, at most PROMPT characters; "" if there are none."""
    special = tokenizer.special_ids
    ordinary = itertools.dropwhile(special.__contains__, tokens[:READ].tolist())
    document = itertools.takewhile(lambda i: i not in special, ordinary)        # the first one
    text = tokenizer.decode([*document])
    words = re.search(rf"\S(?:[^\n\r]{{0,{PROMPT - 1}}}(?=\s|\Z)|\S{{0,{PROMPT - 1}}})", text.replace("\ufffd", " "))
    return words[0].strip() if words else ""


def command(folder: Path | None, prompt: str, name: str = "generate") -> str:
    """The command of this name for the model in a folder and a prompt, as a shell takes it."""
    flag = "--prompt=" if prompt.startswith("-") else "--prompt "
    return f"pyllama {name} --model {quoted(str(folder))}" + (f" {flag}{quoted(prompt)}" if prompt else "")


def sampler(state, prompt: str, tokenizer: Tokenizer, tokens: int, stopped: Callable[[], bool]) -> Callable[[], str]:
    """A function that continues the prompt with the model as it is then, and returns one line; "" for tokens = 0.

    tokens      how many to write at most
    stopped     asked before each token: is there no time left?
    """
    settings = GenerationConfig(max_new_tokens=tokens, **BASE)

    def sample() -> str:
        if not (tokens and prompt):
            return ""
        text, ids = prompt, special.prompt(tokenizer, prompt)
        with contextlib.suppress(UserError):                # scores that are not finite: training reports them
            for piece in stream(state.tree, state.config, ids, tokenizer, settings):
                text += piece
                if len(text) > WIDTH or stopped():
                    break
        line = repr(text)
        return line if len(line) <= WIDTH else f"{line[:WIDTH - 3]}..."

    return sample
