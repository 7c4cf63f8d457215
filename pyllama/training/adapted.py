"""An adapter that is read from a folder, and the model that it is merged into."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import params
from pyllama.decode.plan import dtype_of
from pyllama.errors import UserError
from pyllama.formats import peft, peft_config
from pyllama.models import adapters
from pyllama.models.adapters import Adapter
from pyllama.quantization import decoded_tree
from pyllama.quantization.adapted_base import stored_base
from pyllama.training.checkpoint import Checkpoint
from pyllama.training.fingerprint import fingerprint, require_same


def base_of(saved: Checkpoint) -> Path:
    """Where the base model of an adapter is.  Raises UserError if it is not there."""
    base = (saved.adapter or {}).get("base_model_name_or_path")
    if not base or not Path(base).exists():
        raise UserError(f"{saved.folder} is an adapter of {base or 'a model without a name'}, which is not there; "
                        f"write the path of its base model into {peft.CONFIG} as base_model_name_or_path")
    return Path(base)


def read(saved: Checkpoint, base: dict, config: Any) -> Adapter:
    """The adapter of a checkpoint or a folder of PEFT, for this base.

    Raises UserError if there is none, or if it is that of another base.
    """
    if saved.adapter is None:
        raise UserError(f"{saved.folder} is a whole model, not an adapter; load it by itself")
    stored = saved.trainer.get("about", {}).get("adapter", {})
    lora = peft_config.lora_of(saved.adapter, saved.folder)
    if stored:
        modules = tuple(f"{module}." for module in lora.saved)
        head = {name for name, _ in params.leaves(base) if name.startswith(modules)}
        require_same(fingerprint(stored_base(base, config, base_dtype(saved)), head), stored)
    tensors = peft_config.fitted(lora, saved.tensors, base, config, str(dtype_of(base)))
    return Adapter(lora, tensors, stored.get("base", ""), stored.get("fingerprint", ""),
                   base_dtype(saved))


def base_dtype(saved: Checkpoint) -> str | None:
    """How a run of adapters stored its base."""
    return saved.trainer.get("about", {}).get("adapter", {}).get("adapting", {}).get("base_dtype")


def chosen(base: dict, known: Mapping[str, Adapter], name: str | None, config: Any) -> dict:
    """The base's parameters with the adapter of this name merged.  Raises UserError if there is no such adapter.

    They are rounded as the run that trained the adapter stored them; in float64 none stays encoded.
    """
    if name is None:
        return base
    if name not in known:
        choice = f"give one of {', '.join(known)}" if known else "add it first"
        raise UserError(f"there is no adapter {name!r}; {choice}")
    tree = stored_base(base, config, known[name].base_dtype)
    tree = decoded_tree(tree, np.float64) if dtype_of(base) == np.float64 else tree
    return adapters.merged(adapters.attached(tree, known[name].tensors), config)
