"""A prompt on the disk: its keys and values, so that it need not be read again.

    a file of safetensors       the arrays of Session.state(), and "fingerprint", uint8 [32]

What a new prompt shares with the one in the file, from the first token on, is taken from the file; the rest is read.
Then the file keeps the new prompt, unless it already has all of it.
"""
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import files
from pyllama.device import host
from pyllama.errors import UserError
from pyllama.formats.safetensors import read_tensors, to_safetensors
from pyllama.generation.window import Window, shared
from pyllama.params import leaves
from pyllama.quantization import EncodedArray

SAMPLED = 512                               # words of a parameter that the fingerprint has as they are


def extend(window: Window, prompt: Sequence[int], path: str | Path, params: dict, config: Any) -> Any:
    """Give the only sequence of a window, which is empty, a prompt; returns the scores [1 V] of its next token.

    Raises UserError if the file is damaged, is of another model, or cannot be written.
    """
    path, mark = Path(path), fingerprint(params, config)
    kept = read(path, mark, config) if path.exists() else None
    ids: list[int] = kept["ids"].tolist() if kept else []
    first = shared(ids, prompt[:-1])
    if kept and first:
        window.restore({name: a[:first] if name == "ids" else a[:, :first] for name, a in kept.items()})
    scores = np.array(window.extend([prompt[first:]]))
    if ids[:len(prompt)] != [*prompt]:
        files.export(path, to_safetensors({**window.session.state(), "fingerprint": mark}))
    return scores


def read(path: Path, mark: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    """The state in a file.  Raises UserError if it is damaged, or not of the model with this fingerprint."""
    try:
        tensors = read_tensors(path)
    except files.DamagedFile:
        raise UserError(f"the prompt cache {path} cannot be read; give the name of another file") from None
    found = tensors.pop("fingerprint", None)
    if found is None or "ids" not in tensors:
        raise UserError(f"{path} is not a prompt cache; give another file")
    if not np.array_equal(found, mark):
        raise UserError(f"{path} keeps a prompt of another model; give another file, or delete it")
    T, K = len(tensors["ids"]), config.head_width
    expected = {"ids": ("i", (T,)), **{f"layers.{i}.{name}": ("f", (config.groups_of(i), T, K))
                                       for i in range(config.num_hidden_layers) for name in "kv"}}
    if {name: (a.dtype.kind, a.shape) for name, a in tensors.items()} != expected:
        raise files.DamagedFile(f"{path} is damaged: its arrays are not those of a prompt; delete it")
    return tensors


def fingerprint(params: dict, config: Any) -> np.ndarray:
    """32 bytes that tell models apart: of the configuration without its special tokens, and of every parameter its
    name, type, shape, the sum of its words and a sample of them.

    The sum changes with any one number.  It is read as fast as the memory is, unlike a digest of all bytes.
    """
    named = {f.name: repr(getattr(config, f.name)) for f in fields(config)
             if f.name != "extra" and not f.name.endswith("token_id")}
    digest = files.sha256(files.to_json({"type": config.TYPE, **named}))
    for name, leaf in leaves(params):
        kind, a = (leaf.kind, leaf.data) if isinstance(leaf, EncodedArray) else (leaf.dtype.name, host(leaf))
        digest.update(f"{name} {kind} {leaf.shape}".encode())
        raw = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
        words, rest = raw[:len(raw) // 8 * 8].view(np.uint64), raw[len(raw) // 8 * 8:]
        digest.update(np.sum(words, dtype=np.uint64).tobytes() + rest.tobytes())
        digest.update(words[::max(1, len(words) // SAMPLED)].tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
