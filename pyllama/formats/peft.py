"""The folder of an adapter as the library PEFT has it: adapter_config.json and adapter_model.safetensors.

    base_model.model.NAME.lora_A.weight [R D]       NAME is that of the matrix in a state dict of transformers
    base_model.model.NAME.lora_B.weight [F R]
    base_model.model.NAME.lora_magnitude_vector [F]                     of DoRA
    base_model.model.NAME                           a parameter that is trained whole (modules_to_save)

Source: github.com/huggingface/peft, LoraConfig and get_peft_model_state_dict, version 0.21.
"""
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import files, params
from pyllama.errors import UserError
from pyllama.files import DamagedFile
from pyllama.formats.safetensors import read_tensors, to_safetensors
from pyllama.models import adapters
from pyllama.models.adapters import DETACHED, DORA, Adapter, Lora

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
CONSTANTS = ("lora_scale", DETACHED)                        # they follow from the settings, so they are not written
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


def to_peft(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of an adapter under PEFT's names."""
    return {f"{PREFIX}{name}": a for name, a in tensors.items() if not name.endswith(CONSTANTS)}


def from_peft(tensors: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The inverse of to_peft().  Raises DamagedFile for other names."""
    if wrong := [name for name in tensors if not name.startswith(PREFIX)]:
        raise DamagedFile(f"{folder / MODEL} is not an adapter of PEFT: it has a tensor {wrong[0]!r}, whose name does "
                          f"not begin with {PREFIX}; fetch it again")
    return {name.removeprefix(PREFIX): a for name, a in tensors.items()}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter_config.json, the arrays under the names of a tree) of a folder.  Raises UserError if it is damaged."""
    stored = files.read_json(folder / CONFIG)
    if not isinstance(stored, dict):
        raise DamagedFile(f"{folder / CONFIG} is damaged: it is not an object; fetch it again")
    if not (folder / MODEL).is_file():
        raise UserError(f"{folder} has {CONFIG} but not {MODEL}; save the adapter again, with safe_serialization=True")
    return stored, from_peft(read_tensors(folder / MODEL), folder)


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
