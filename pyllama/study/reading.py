"""A model, and a text that it reads."""
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import pretrained
from pyllama.tasks.finetune import framed, stored_task
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint, objectives


def model_at(path: Path, tokenizer: Path | None = None) -> pretrained.Model:
    """The model at `path`; of a run on a task the best checkpoint, which answers.  See pretrained.load()."""
    is_of_task = (path / "best").is_file() and stored_task(path) is not None
    return pretrained.load(checkpoint.best(path) if is_of_task else path, tokenizer)


def ids_of(text: str, config: Any, tokenizer: Tokenizer) -> np.ndarray:
    """The ids [1 T] of a text with the special tokens around it, without those behind it where a model continues it."""
    frame = special.frame(framed(tokenizer, config))
    behind = [] if objectives.continues(config) else frame.behind
    return np.array([[*frame.before, *tokenizer.encode(text), *behind]], int)
