"""The folder of an adapter as the library PEFT has it: adapter_config.json and adapter_model.safetensors.

    base_model.model.NAME.lora_A.weight [R D]       NAME is that of the matrix in a state dict of transformers
    base_model.model.NAME.lora_B.weight [F R]
    base_model.model.NAME.lora_magnitude_vector [F]                     of DoRA
    base_model.model.NAME                           a parameter that is trained whole (modules_to_save)

Source: github.com/huggingface/peft, get_peft_model_state_dict, version 0.21.
"""
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import files
from pyllama.errors import UserError
from pyllama.files import DamagedFile
from pyllama.formats.safetensors import read_tensors

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
CONSTANTS = ("lora_scale", "lora_detached")                 # they follow from the settings, so they are not written


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
