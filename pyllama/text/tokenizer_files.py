"""The files of a Hugging Face tokenizer: tokenizer.json or an older vocabulary, and the settings beside it."""
import codecs
import json
from pathlib import Path
from typing import Any

import tokenizers

from pyllama.errors import UserError
from pyllama.files import parse_json
from pyllama.text import vocabularies

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS, CHAT_TEMPLATE = "special_tokens_map.json", "chat_template.jinja"       # older and newer places
FILES = (TOKENIZER, "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
BESIDE = (SETTINGS, SPECIAL_TOKENS, CHAT_TEMPLATE, "added_tokens.json")
# Settings of transformers that name a class or a file of their own, or repeat what tokenizer.json says.
NOT_KEPT = ("auto_map", "add_bos_token", "add_eos_token", "added_tokens_decoder", "tokenizer_file", "name_or_path",
            "special_tokens_map_file")
MOST_TOKENS = 2**24                                 # many times the largest vocabulary that is in use


def read(path: str | Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """(tokenizer, settings) from a tokenizer.json or a vocabulary (see vocabularies.py), given the file or its folder.

    Of several files in a folder the first of FILES is read.  The settings are those of tokenizer_config.json, with the
    special tokens of special_tokens_map.json and the template of chat_template.jinja.  For a tokenizer.json with
    another name they are empty.

    Raises UserError if a file cannot be read.
    """
    path = Path(path)
    file = path / (found(path) or TOKENIZER) if path.is_dir() else path
    if file.name == "merges.txt":
        file = file.with_name("vocab.json")
    if file.suffix not in (".model", ".txt") and file.name != "vocab.json":
        return _rust(file), read_settings(file.parent) if file.name == TOKENIZER else {}
    folder = file.parent
    settings = read_settings(folder)
    if file.suffix == ".model":
        kind = f"{settings.get('tokenizer_class', '')} {_object(folder / 'config.json').get('model_type', '')}"
        rust, roles = vocabularies.pieces(file, kind, settings)
    else:
        make = vocabularies.word_pieces if file.suffix == ".txt" else vocabularies.byte_pairs
        rust, roles = make(file, _text(file), settings)
    return vocabularies.with_added(rust, settings, _object(folder / "added_tokens.json"), roles), {**settings, **roles}


def found(folder: Path) -> str | None:
    """The name of the tokenizer's file in a folder, or None."""
    return next((name for name in FILES if (folder / name).is_file()), None)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder: see read()."""
    settings = {**_object(folder / SPECIAL_TOKENS), **_object(folder / SETTINGS)}
    if (folder / CHAT_TEMPLATE).is_file():                      # transformers prefers this one
        settings["chat_template"] = _text(folder / CHAT_TEMPLATE)
    return settings


def written(rust: tokenizers.Tokenizer, settings: dict[str, Any], special: dict[str, str],
            inputs: list[str]) -> dict[str, str]:
    """{name: text} of tokenizer.json and tokenizer_config.json, from which transformers makes the same tokenizer.

    settings    those that read() gave
    special     the special tokens by role: {"eos_token": "</s>", ...}
    inputs      the arrays that the model takes: ["input_ids", "attention_mask", ...]

    The class is PreTrainedTokenizerFast, because others change what tokenizer.json says.
    """
    kept = {name: value for name, value in settings.items() if name not in NOT_KEPT}
    complete = {"clean_up_tokenization_spaces": False, **kept, **special, "model_input_names": inputs,
                "tokenizer_class": "PreTrainedTokenizerFast"}
    return {TOKENIZER: rust.to_str(pretty=True),
            SETTINGS: json.dumps(complete, indent=2, sort_keys=True, ensure_ascii=False) + "\n"}


def _rust(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json."""
    data = _bytes(file, f"give a {TOKENIZER} or a folder that has one")
    try:
        rust = tokenizers.Tokenizer.from_buffer(data)       # a str would take several times the memory
    except Exception as error:                      # the library raises nothing narrower
        _decoded(data, file)                        # what is not UTF-8 has a message of its own
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise UserError(f"{file} is not a tokenizer.json that the tokenizers library can read: {reason}; "
                        f"give one written by Hugging Face or by pyllama") from None
    end = ids_end(rust)
    if end > MOST_TOKENS:                           # the library would count up to it, and abort where memory ends
        raise UserError(f"{file} gives the token {rust.id_to_token(end - 1)!r} the id {end - 1:,}, but ids must be "
                        f"below {MOST_TOKENS:,}; renumber its tokens")
    return rust


def ids_end(rust: tokenizers.Tokenizer) -> int:
    """The largest id plus 1, even if some ids below it have no token."""
    count = rust.get_vocab_size()
    if all(rust.id_to_token(i) is not None for i in range(count)):      # usual; a copy of the vocabulary takes memory
        return count
    return max(rust.get_vocab().values(), default=-1) + 1


def _text(file: Path, cure: str = "fix that, or move it elsewhere") -> str:
    """The text of a file in UTF-8."""
    return _decoded(_bytes(file, cure), file)


def _bytes(file: Path, cure: str) -> bytes:
    """The content of a file, without a byte order mark."""
    try:
        return file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; {cure}") from None


def _decoded(data: bytes, file: Path) -> str:
    """The text of the bytes of a file."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not a {file.name}, because it is not UTF-8; give one written by Hugging Face or by "
                        f"pyllama") from None


def _object(file: Path) -> dict[str, Any]:
    """The object of a JSON file; {} if the file does not exist."""
    if not file.is_file():
        return {}
    try:
        content = parse_json(_text(file))
        json.dumps(content, ensure_ascii=False).encode()        # half of a surrogate pair is not a character
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); fix it, or move it elsewhere") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object; fix it, or move it elsewhere")
    return content
