"""How to continue a text: the settings of a person."""
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np

from pyllama.errors import UserError


def of_files(default: Any = ()) -> Any:
    """A field that Python and a model's files set, not the command line."""
    return field(default=default, metadata={"flag": False})


@dataclass(frozen=True)
class SearchConfig:
    """How to search for the most likely answer, under the names of Hugging Face's generate().

    A beam search goes on while an unfinished answer may win.  With early_stopping=False, one may if its score would win
    at its present length; with "never", if it would at the greatest length.

    Raises UserError for an invalid value.
    """

    FEWEST: ClassVar = 1                    # tokens

    max_new_tokens: int = 100               # maximum number of tokens to generate
    num_beams: int = 1                      # unfinished answers that a beam search extends; 1: no search
    length_penalty: float = 1.0             # exponent of the length in a beam's score: above 0 favors long answers
    early_stopping: bool | Literal["never"] = False  # stop at num_beams finished answers; never: once no other can win

    def __post_init__(self):
        self.check(
            ("max_new_tokens", self.max_new_tokens >= self.FEWEST, f"at least {self.FEWEST}"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("length_penalty", -10 <= self.length_penalty <= 10, "between -10 and 10"),
            ("early_stopping", self.early_stopping in (False, True, "never"), 'False, True or "never"'))

    def check(self, *rules: tuple[str, bool, str]) -> None:
        """Raise UserError for the first field whose value does not fit, of (name, does it fit?, what it must be)."""
        for name, fits, rule in rules:
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {rule}")


@dataclass(frozen=True)
class GenerationConfig(SearchConfig):
    """How to continue a text, under the names of Hugging Face's generate().  Raises UserError for an invalid value.

    >>> from pyllama.generation import GenerationConfig
    >>> GenerationConfig(do_sample=True, temperature=0.8, top_k=40).greedy
    False
    """

    FEWEST: ClassVar = 0

    do_sample: bool = False                 # sample the next token instead of taking the most likely one
    temperature: float = 1.0                # divisor of the logits; 0: the most likely token (default: see above)
    seed: int = 0                           # seed of the sampling
    top_k: int = 0                          # sample from the k most likely tokens; 0: from all (default: see above)
    top_p: float = 1.0                      # sample from the smallest set of likely tokens with total probability p
    min_p: float = 0.0                      # sample from tokens at least p times as likely as the most likely one
    repetition_penalty: float = 1.0         # above 1: tokens that already occurred become less likely
    num_return_sequences: int = 1           # number of texts for each prompt
    stop_strings: tuple[str, ...] = ()      # stop before the first of these strings
    speculation: str = "auto"               # guess tokens from the text and verify them at once: auto, off, or how many
    cache: Literal["auto", "full", "f16", "int8"] = "auto"  # bits of keys and values; auto: f16 beside stored matrices
    prompt_cache: str | None = None         # file to keep the prompt's keys and values in, and to take them from
    eos_token_id: int | Sequence[int] | None = of_files(None)       # ids that end a text; None: the model's
    output_scores: bool = of_files(False)   # fill Result.scores

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        object.__setattr__(self, "speculation", str(self.speculation))
        self.check(
            ("temperature", 0 <= self.temperature < np.inf, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0, where 0 means all"),
            ("top_p", 0 < self.top_p <= 1, "in 0 < p <= 1, where 1 means all"),
            ("min_p", 0 <= self.min_p <= 1, "in 0 <= p <= 1, where 0 means all"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0, where 1 means none"),
            ("num_return_sequences", self.num_return_sequences >= 1, "at least 1"),
            ("stop_strings", are_strings(self.stop_strings), "a sequence of non-empty strings, or one"),
            ("cache", self.cache in ("auto", "full", "f16", "int8"), '"auto", "full", "f16" or "int8"'),
            ("speculation", self.speculation in ("auto", "off") or self.speculation.isdecimal(),
             '"auto", "off" or a number of tokens'),
            ("seed", self.seed >= 0, "at least 0"))
        for name in () if self.do_sample else ("top_k", "top_p", "min_p", "temperature"):
            if getattr(self, name) not in (getattr(GenerationConfig, name), 0):
                raise UserError(f"{name} has no effect without sampling; set do_sample, or remove {name}")
        if self.num_beams > 1 and self.do_sample:
            raise UserError("num_beams above 1 searches and do_sample draws; set one of them, not both")
        if self.num_return_sequences > max(1, self.num_beams) and self.greedy:
            raise UserError(f"num_return_sequences is {self.num_return_sequences}, which needs as many num_beams, or "
                            f"do_sample and a temperature above 0")

    @classmethod
    def of(cls, search: SearchConfig | None) -> "GenerationConfig":
        """The settings of a search; None: the defaults."""
        return cls(**{f.name: getattr(search, f.name) for f in fields(SearchConfig)} if search else {})

    @property
    def greedy(self) -> bool:
        """Is the most likely token, or answer, always taken?"""
        return not self.do_sample or self.temperature == 0


def are_strings(values: object) -> bool:
    """Are these a list or a tuple of strings, none of them empty?"""
    return isinstance(values, list | tuple) and all(isinstance(value, str) and value for value in values)
