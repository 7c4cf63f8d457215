"""Text to token ids and back: characters, bytes, byte-level BPE, or any tokenizer.json, behind one class."""
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pyllama.errors import UserError
from pyllama.files import rewrite

# Names in use on the Hugging Face Hub; where a vocabulary has several, the earlier one marks the end in pretraining.
EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<｜end▁of▁sentence｜>", "<|eot_id|>")
BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<|endoftext|>")
MASK = ("<mask>", "[MASK]")

PIECE = 2**16                                       # characters of a long text that are encoded in one go
AT_ONCE = 64                                        # texts in the library's hands: it keeps about 100 bytes a token


class Tokenizer:
    """A Hugging Face tokenizer (`rust`, a tokenizers.Tokenizer) with NumPy at its border."""

    def __init__(self, rust: tokenizers.Tokenizer):
        # A tokenizer.json may ask to cut or pad what it encodes, which would silently shorten a corpus.
        rust.no_truncation()
        rust.no_padding()
        self.rust = rust

    # How to come by one

    @classmethod
    def characters(cls, text: str) -> "Tokenizer":
        """One token for each character that occurs in the text, in code-point order."""
        if not text:
            raise UserError("the text is empty, so it holds no character to make a vocabulary of; give some text")
        return cls(_characters(sorted(set(text))))

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """256 tokens, one for each byte of UTF-8: any text, no training."""
        return cls(_bytes())

    @classmethod
    def byte_pairs(cls, texts: Iterable[str], vocab_size: int,
                   special: Sequence[str] = ("<|endoftext|>",), alone: str = "") -> "Tokenizer":
        """Byte-level BPE as in GPT-2, learned from the texts (Sennrich et al. 2016; Radford et al. 2019).

        The special tokens come first (ids 0, 1, ...), then the 256 bytes, then the merges: any text can be encoded.
        The vocabulary is smaller than asked where the texts hold no more pairs.  What the pattern `alone` matches is in
        no token with what stands around it.
        """
        least = 256 + len(special)
        if vocab_size < least:
            raise UserError(f"vocab_size {vocab_size} is too small: 256 bytes and {len(special)} special tokens "
                            f"need {least}; ask for more, or use a character or byte tokenizer")
        rust = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.pre_tokenizer = words if not alone else pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(alone), "isolated"), words])
        rust.decoder = decoders.ByteLevel()
        rust.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        return cls(rust)

    @classmethod
    def words(cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = (), unknown: str = "<unk>"
              ) -> "Tokenizer":
        """A token for each of the most frequent words and marks, and `unknown` for the others: what vectors of words
        belong to.  Decoding puts a space between any two."""
        rust = tokenizers.Tokenizer(models.WordLevel(unk_token=unknown))
        rust.pre_tokenizer = pre_tokenizers.Whitespace()
        rust.train_from_iterator(texts, trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=[*special, unknown], show_progress=False))
        return cls(rust)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json, or the one in this folder."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            text = file.read_bytes().decode()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}; give a tokenizer.json "
                            f"or a folder that holds one") from None
        except UnicodeDecodeError:
            raise UserError(f"{file} is not a tokenizer.json, it is not even text; give one written "
                            f"by Hugging Face or by pyllama") from None
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:                  # the library raises nothing narrower
            raise UserError(f"{file} is not a tokenizer.json that the tokenizers library understands: {error}; "
                            f"give one written by Hugging Face or by pyllama") from None

    def save(self, folder: str | Path) -> None:
        """Write folder/tokenizer.json, whole or not at all."""
        file = Path(folder) / "tokenizer.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        rewrite(file, [self.rust.to_str(pretty=True).encode()])

    # What it is

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows an embedding needs, also where some ids have no token."""
        return max(self.rust.get_vocab().values(), default=-1) + 1

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the JSON as the library writes it: the same for every spelling of the same tokenizer.json."""
        return hashlib.sha256(self.rust.to_str().encode()).hexdigest()

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, by its usual names, or None."""
        return self._special(EOS)

    @property
    def bos_id(self) -> int | None:
        """The token that starts a text, by its usual names, or None.  GPT-2 starts with its end of text."""
        return self._special(BOS)

    @property
    def mask_id(self) -> int | None:
        """The token that hides another one, by its usual names, or None."""
        return self._special(MASK)

    @property
    def special_ids(self) -> list[int]:
        """The tokens that stand for no text."""
        return sorted(i for i, token in self.rust.get_added_tokens_decoder().items() if token.special)

    def _special(self, names):
        ids = {token.content: i for i, token in self.rust.get_added_tokens_decoder().items() if token.special}
        return next((ids[name] for name in names if name in ids), None)

    # What it does

    def encode(self, text: str, add_special_tokens: bool = False) -> np.ndarray:
        """ids[N] of `dtype`.  A special token spelled out in the text, such as <|endoftext|>, becomes that token.

        Raises UserError, naming the first character that a character vocabulary lacks, or a lone surrogate.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[np.ndarray]:
        """encode() of each text, in parallel."""
        _refuse_surrogates(texts)
        if self._lookup:
            return [self._look_up(text) for text in texts]
        pieces = [[text] if add_special_tokens else self._pieces(text) for text in texts]
        encoded = (np.array(encoding.ids, self.dtype) for encoding in self._encode(
            self.rust.encode_batch_fast, [piece for some in pieces for piece in some], add_special_tokens))
        return [np.concatenate([next(encoded) for _ in some]) for some in pieces]

    def encode_with_places(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids[N], places[N 2]) of each text, without special tokens: a token stands for text[first:past], its places.

        These leave out white space at either end, so that a token of nothing else has first == past; a token that is a
        part of a character has all of it.  Raises UserError as encode() does.
        """
        _refuse_surrogates(texts)
        encoded = self._encode(self.rust.encode_batch, texts, False)
        return [(np.array(one.ids, self.dtype),
                 np.array([_trimmed(text, *place) for place in one.offsets], int).reshape(-1, 2))
                for text, one in zip(texts, encoded, strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """The text of ids[N].  Bytes that are not UTF-8, such as half a character, show as U+FFFD.

        Raises IndexError on an id outside the vocabulary, which the library would skip in silence.
        """
        array = np.asarray(ids, np.int64)
        if array.size and not 0 <= (wrong := array.min() if array.min() < 0 else array.max()) < self.vocab_size:
            raise IndexError(f"id {wrong} is outside the vocabulary of {self.vocab_size} tokens")
        return self.rust.decode(array.tolist(), skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = False) -> "Stream":
        """A decoder for ids that come one at a time."""
        return Stream(self, skip_special_tokens)

    @functools.cached_property
    def _lookup(self) -> tuple[str, str, np.ndarray] | None:
        """(codec, dtype, alphabet) if the ids are places in the sorted alphabet of what the codec makes of a text.

        So it is with characters() and bytes(), wherever they were loaded from, and NumPy finds them some twenty times
        faster than the library, which takes seconds for a megabyte of characters.
        """
        tokens = sorted(self.rust.get_vocab())
        if len(tokens) == 256 and _same(self.rust, _bytes()):
            return "utf-8", "u1", np.arange(256)
        if all(len(token) == 1 for token in tokens) and _same(self.rust, _characters(tokens)):
            return "utf-32-le", "<u4", np.array([ord(token) for token in tokens])
        return None

    def _look_up(self, text: str) -> np.ndarray:
        assert self._lookup is not None
        codec, dtype, alphabet = self._lookup
        points = np.frombuffer(text.encode(codec), dtype)
        ids = np.searchsorted(alphabet, points)
        missing = alphabet[np.minimum(ids, len(alphabet) - 1)] != points
        if missing.any():
            at = int(missing.argmax())
            raise UserError(f"the vocabulary has no {text[at]!r} (U+{points[at]:04X}){_place(text, at)}; remove it, "
                            f"build the tokenizer from text that holds it, or use a byte-level one")
        return ids.astype(self.dtype)

    def _pieces(self, text: str) -> list[str]:
        """The text cut where GPT-2's pattern ends a word in any case, to be encoded in parallel and in bounded memory.

        That is before a newline that follows what is no space.  Another pattern may look across it: then no cut.
        """
        if len(text) <= PIECE or not self._breaks_words_at_newlines:
            return [text]
        cuts = [0]
        for newline in re.finditer(r"(?<=\S)\n", text):
            if newline.start() - cuts[-1] >= PIECE:
                cuts.append(newline.start())
        return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]

    @functools.cached_property
    def _breaks_words_at_newlines(self) -> bool:
        parts = json.loads(self.rust.to_str())
        before = parts["pre_tokenizer"] or {}
        return (parts["normalizer"] is None and before.get("type") == "ByteLevel"
                and before["use_regex"] and not before["add_prefix_space"])

    def _encode(self, encode, texts: Sequence[str], add_special_tokens: bool) -> Iterator[tokenizers.Encoding]:
        for start in range(0, len(texts), AT_ONCE):
            try:
                encodings = encode(texts[start:start + AT_ONCE], add_special_tokens=add_special_tokens)
            except Exception as error:              # the library raises nothing narrower
                raise UserError(f"the tokenizer cannot encode this text: {error}; use one with an unknown token, "
                                f"or a byte-level one") from None
            yield from encodings


class Stream:
    """Ids in, text out as soon as no later id can change it: never half a character.

    What push() and a last flush() return, joined, is decode() of all ids, where the decoder only ever appends.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False):
        self._decode = functools.partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._shown = 0                             # how many of _ids were shown; they stay as left context, because
                                                    # some decoders treat the first token of a text differently

    def push(self, token_id: int) -> str:
        """The text that is certain now: "" while a character is incomplete."""
        self._ids.append(int(token_id))
        return "" if self._decode(self._ids).endswith("\ufffd") else self.flush()

    def flush(self) -> str:
        """What is left, half a character as U+FFFD."""
        new = self._decode(self._ids)[len(self._decode(self._ids[:self._shown])):]
        self._ids = self._ids[self._shown:]
        self._shown = len(self._ids)
        return new


def _characters(alphabet: Sequence[str]) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.WordLevel({character: i for i, character in enumerate(alphabet)}))
    rust.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    rust.decoder = decoders.Fuse()
    return rust


def _bytes() -> tokenizers.Tokenizer:
    """BPE without merges.  Its alphabet writes a printable byte as itself and the others, in order, as U+0100 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in alphabet if ord(character) < 256]
    values = printable + sorted(set(range(256)) - set(printable))
    rust = tokenizers.Tokenizer(models.BPE(dict(zip(alphabet, values, strict=True)), []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    return rust


def _same(one: tokenizers.Tokenizer, other: tokenizers.Tokenizer) -> bool:
    return one.to_str() == other.to_str()


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        if not text.isascii() and (lone := re.search("[\ud800-\udfff]", text)):
            raise UserError(f"U+{ord(lone[0]):04X}{_place(text, lone.start())} is half of a surrogate pair, "
                            f"which no text may hold; remove it")


def _trimmed(text: str, first: int, past: int) -> tuple[int, int]:
    past = first + len(text[first:past].rstrip())
    return past - len(text[first:past].lstrip()), past


def _place(text: str, at: int) -> str:
    return f" at position {at} (line {text.count(chr(10), 0, at) + 1})"
