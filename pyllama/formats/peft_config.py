"""The settings of an adapter as PEFT's adapter_config.json has them, and an adapter's arrays for a base model.

Source: github.com/huggingface/peft, LoraConfig, version 0.21.
"""
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import files, params
from pyllama.errors import UserError
from pyllama.files import DamagedFile
from pyllama.formats.peft import CONFIG, MODEL, to_peft
from pyllama.formats.safetensors import to_safetensors
from pyllama.models import adapters
from pyllama.models.adapters import DETACHED, DORA, Adapter, Lora

# What this package does not compute: the values of adapter_config.json without which a file cannot be read.
PLAIN: dict[str, Any] = {"peft_type": "LORA", "bias": "none", "lora_bias": False, "rank_pattern": {},
                         "alpha_pattern": {}, "layer_replication": None, "use_qalora": False, "use_bdlora": None,
                         "trainable_token_indices": None, "target_parameters": None,
                         "alora_invocation_tokens": None, "arrow_config": None, "megatron_config": None}
TASK_TYPES = {"next token": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classification": "SEQ_CLS",
              "tagging": "TOKEN_CLS", "span": "QUESTION_ANS"}


def config_of(lora: Lora, base: str, config: Any) -> dict[str, Any]:
    """The adapter_config.json of an adapter of a model with this configuration.    base: the path of the base model"""
    kind = TASK_TYPES.get(config.learns) or TASK_TYPES.get(config.head)
    return {"peft_type": "LORA", "task_type": kind, "base_model_name_or_path": base or None, "bias": "none",
            "fan_in_fan_out": bool(config.TRANSPOSED), "inference_mode": True, "r": lora.rank,
            "lora_alpha": lora.alpha, "lora_dropout": 0.0, "use_rslora": lora.rslora, "use_dora": bool(lora.dora),
            "target_modules": adapters.ALL if adapters.ALL in lora.targets else sorted(lora.targets),
            "modules_to_save": sorted(lora.saved) or None}


def lora_of(stored: dict[str, Any], folder: Path) -> Lora:
    """The settings in an adapter_config.json.  Raises UserError if they ask for something else than LoRA or DoRA."""
    for key, plain in PLAIN.items():
        if stored.get(key, plain) != plain:
            raise UserError(f"{folder / CONFIG} has {key} = {stored[key]!r}, which is not supported; merge the adapter "
                            f"with PEFT, by merge_and_unload(), and load the merged model")
    try:
        targets, saved = stored.get("target_modules") or (), stored.get("modules_to_save") or ()
        return Lora((targets,) if isinstance(targets, str) else tuple(sorted(targets)), int(stored["r"]),
                    float(stored["lora_alpha"]), bool(stored.get("use_rslora", False)),
                    "exact" if stored.get("use_dora") else "", tuple(saved))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{folder / CONFIG} is damaged: {type(error).__name__} {error}; fetch it again") from None


def write(folder: Path, adapter: Adapter, config: Any) -> None:
    """Write the two files of an adapter into a folder, which is made if necessary."""
    files.make_folder(folder)
    files.export(folder / MODEL, to_safetensors(to_peft(adapter.tensors)))
    files.export(folder / CONFIG, [files.to_json(config_of(adapter.lora, adapter.base, config))])


def fitted(lora: Lora, tensors: dict[str, np.ndarray], tree: dict, config: Any, dtype: str) -> dict[str, np.ndarray]:
    """The arrays of an adapter as attached() takes them, in the order of begun(), for this base.

    Raises UserError if the adapter is that of another base.
    """
    paths = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    known, whole = adapters.matrices(tree, config), dict(params.leaves(tree))
    if wrong := [path for path in paths if path not in known]:
        raise UserError(f"the adapter has {wrong[0]}, which its base model lacks; give the base that it was trained on")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in (path for path in known if path in paths):          # as in the tree
        F, D = known[path]
        shapes |= {f"{path}.lora_A.weight": (lora.rank, D), f"{path}.lora_B.weight": (F, lora.rank)}
        shapes |= {f"{path}.{DORA}": (F,)} if lora.dora else {}
    shapes |= {name: whole[name].shape for name in tensors if name in whole}
    for name in sorted(shapes.keys() ^ tensors.keys()):
        where, but = ("base", "adapter") if name in shapes else ("adapter", "base")
        raise UserError(f"{name} is in the {where} but not in the {but}; give the base that the adapter was trained on")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(f"{name} has shape {list(tensors[name].shape)} in the adapter, but its base needs "
                            f"{list(shape)}; give the base that it was trained on")
    arrays = {name: tensors[name].astype(dtype) for name in shapes}
    constants: dict[str, np.ndarray] = {}
    for path in paths:
        constants[f"{path}.lora_scale"] = np.asarray(lora.scale, dtype)
        constants |= {f"{path}.{DETACHED}": np.ones((), dtype)} if lora.dora == "detached" else {}
    return arrays | constants
