"""The settings of fine-tuning besides those of training: the model, and how the rows are used."""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pyllama.errors import UserError, check_choices
from pyllama.training.loop import Settings


@dataclass(frozen=True)
class Setup:
    """The model to fine-tune, and how to use the rows."""

    model: str                                  # folder of a trained model, or a family from `pyllama models`
    epochs: int | None = None                   # passes over the rows, instead of max_steps
    max_length: int = 128                       # maximum tokens of a text; longer ones are truncated
    dev: float = 0.1                            # share of the rows held out for validation
    test: float = 0.0                           # share of the rows held out for the final metrics; 0: use the dev rows
    test_data: Path | None = None               # file of rows for the final metrics
    class_weights: Literal["none", "balanced"] = "none"     # balanced: every class has the same total weight
    resid_pdrop: float | None = None            # dropout rate (default: the trained model's, or 0.1 from scratch)
    tokenizer: Path | None = None               # a tokenizer.json (default: the model's, or bpe learned from the rows)
    vocab_size: int = 4096                      # size of the bpe vocabulary
    vectors: Path | None = None                 # pretrained word vectors (.txt, .vec); tokens are then words

    def __post_init__(self):
        check_choices(self)
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}; it must be at least 1")
        if self.max_length < 3:
            raise UserError(f"max_length is {self.max_length}; it must be at least 3, to hold special tokens too")
        if not 0 < self.dev < 1:
            raise UserError(f"dev is {self.dev}; it must lie between 0 and 1: dev rows select the checkpoint")
        if self.test and self.test_data:
            raise UserError("test and test_data exclude each other; remove one of them")

    def planned(self, settings: Settings, count: int) -> Settings:
        """The settings with max_steps set for `epochs` passes over `count` examples."""
        if self.epochs is None:
            return settings
        return replace(settings, max_steps=-(-self.epochs * count // settings.rows_per_step))
