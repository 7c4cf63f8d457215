"""A model in one file: GGUF, read and written, or llama2.c's, read."""
from pathlib import Path
from typing import Any

from pyllama import files, params
from pyllama.errors import UserError
from pyllama.formats import gguf, gguf_llama, gguf_tokenizer, gguf_tokenizer_keys, llama2c
from pyllama.formats.gguf_metadata import Metadata
from pyllama.models.sharing import expanded
from pyllama.text.tokenizer import Tokenizer

SUFFIX = ".gguf"
Read = tuple[Any, dict, Tokenizer | None, tuple[str, ...]]


def read(path: Path, dtype: str, its_tokenizer: bool = True) -> Read:
    """(configuration, parameters, tokenizer, notes) of a file.

    A GGUF file is mapped into memory: its matrices are arrays or EncodedArrays on it.

    dtype           of the arrays; if it is float64, no matrix is encoded
    its_tokenizer   False: do not read the tokenizer of a GGUF file, because another is going to be used

    Raises UserError for a file in another format, or a damaged one.
    """
    begin = beginning(path)
    if begin == gguf.MAGIC or path.suffix.lower() == SUFFIX:
        file = gguf.read(path)
        metadata = Metadata(path, file.metadata)
        config, tree, notes = gguf_llama.read(metadata, file.tensors, dtype)
        tokenizer, more = gguf_tokenizer.read(metadata, config.vocab_size) if its_tokenizer else (None, ())
        return config, tree, tokenizer, (*notes, *more)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds weights alone; give the folder that has it and config.json")
    if begin == b"PK\x03\x04" or begin[:1] == b"\x80":
        raise UserError(f"{path} is a pickle of PyTorch, which may run any program when it is opened, so it is not "
                        f"read; load it with transformers, and save it with safe_serialization=True")
    config, tree = llama2c.read(path)
    tree, config = llama2c.to_halves(tree, config)          # the layout of Hugging Face
    return config, params.rebuild(tree, (params.cast(a, dtype) for _, a in params.leaves(tree))), None, ()


def beginning(path: Path) -> bytes:
    """The first four bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a model") from None


def write(path: Path, config: Any, parameters: dict, tokenizer: Tokenizer | None, force: bool = False
          ) -> tuple[str, ...]:
    """Write a GGUF file, completely or not at all.  Returns notes on what llama.cpp will do otherwise.

    force   replace a file that exists

    Shared weights are written for each layer.  Raises UserError if the file exists, cannot be written, or the format
    cannot have this model or tokenizer.
    """
    require_new(path, force)
    config, parameters = expanded(config, parameters)
    metadata, tensors, notes = contents(config, parameters, tokenizer)
    files.export(path, gguf.to_gguf(metadata, tensors))
    return notes


def require_writable(path: Path, config: Any, tokenizer: Tokenizer | None, force: bool = False) -> None:
    """Raise UserError if write() would, whatever the parameters are: to know it before work that takes long."""
    require_new(path, force)
    contents(expanded(config, {})[0], {}, tokenizer)


def require_new(path: Path, force: bool) -> None:
    """Raise UserError if there is such a file, which is not to be replaced."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if path.exists() and not force:
        raise UserError(f"{path} exists; give another name, or set force to replace it")


def contents(config: Any, parameters: dict, tokenizer: Tokenizer | None
             ) -> tuple[dict[str, Any], dict[str, gguf.Tensor], tuple[str, ...]]:
    """(metadata, tensors, notes) of a GGUF file.  Raises UserError if the format cannot have the model or tokenizer."""
    metadata, tensors, notes = gguf_llama.written(config, parameters, tokenizer.eos_id if tokenizer else None)
    of_tokenizer, more = gguf_tokenizer_keys.written(tokenizer, config.vocab_size, gguf_llama.ENDS[0] in metadata)
    return {**metadata, **of_tokenizer}, tensors, (*notes, *more)
