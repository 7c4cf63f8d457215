"""A model, and a text that it reads."""
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import pretrained
from pyllama.errors import UserError, counted
from pyllama.quantization import decoded_tree
from pyllama.tasks.finetune import framed, stored_task
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint, objectives


def model_at(path: Path, tokenizer: Path | None = None) -> pretrained.Model:
    """The model at `path`; of a run on a task the best checkpoint, which answers.  See pretrained.load()."""
    is_of_task = (path / "best").is_file() and stored_task(path) is not None
    model = pretrained.load(checkpoint.best(path) if is_of_task else path, tokenizer)
    return replace(model, params=decoded_tree(model.params))


def ids_of(text: str, config: Any, tokenizer: Tokenizer, unread: int = 0) -> np.ndarray:
    """The ids [1 T] of a text with the special tokens around it, without those behind it where a model continues it.

    unread      of the last tokens, which are predicted alone

    Raises UserError if the model does not see so many.
    """
    frame = special.frame(framed(tokenizer, config))
    behind = [] if objectives.continues(config) else frame.behind
    ids = np.array([[*frame.before, *tokenizer.encode(text), *behind]], int)
    if config.context is not None and ids.size - unread > config.context:
        raise UserError(f"the text has {counted(ids.size, 'token')}, but the model sees only {config.context} "
                        f"(max_position_embeddings); shorten it")
    return ids
