"""An adapter that is read from a folder, and the model that it is merged into."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllama import params
from pyllama.errors import UserError
from pyllama.formats import peft, peft_config
from pyllama.models import adapters
from pyllama.models.adapters import Adapter
from pyllama.training import adapting
from pyllama.training.checkpoint import Checkpoint


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
        head = {name for module in lora.saved for name in params.chosen(base, [module])}
        adapting.require_same(adapting.fingerprint(base, head), stored)
    dtype = next(a.dtype for _, a in params.leaves(base) if hasattr(a, "dtype"))
    return Adapter(lora, peft_config.fitted(lora, saved.tensors, base, config, dtype), stored.get("base", ""),
                   stored.get("fingerprint", ""))


def as_trained(saved: Checkpoint, tree: dict, config: Any) -> dict:
    """The base's parameters as a run of adapters stored them while it trained."""
    stored = saved.trainer.get("about", {}).get("adapter", {}).get("adapting", {})
    return adapting.stored_base(tree, config, stored.get("base_dtype"))


def chosen(base: dict, known: Mapping[str, Adapter], name: str | None, config: Any) -> dict:
    """The base's parameters with the adapter of this name merged.  Raises UserError if there is no such adapter."""
    if name is None:
        return base
    if name not in known:
        raise UserError(f"there is no adapter {name!r}; the adapters are {', '.join(known) or 'not read yet'}")
    return adapters.merged(adapters.attached(base, known[name].tensors), config)
