"""Convert text to token ids and back, with one class for characters, bytes, byte-level BPE and any tokenizer.json."""
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pyllama.errors import UserError
from pyllama.files import rewrite, sha256
from pyllama.text import alphabets, borders, frames, ordinary, tokenizer_files

# Names on the Hugging Face Hub, for tokenizers whose settings do not say which token has a role.  If a vocabulary has
# several, the earlier one marks the end in pretraining.
NAMES = {
    "eos_token": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<｜end▁of▁sentence｜>", "[EOS]",
                  "<|eot_id|>", "<|im_end|>"),
    "bos_token": ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "[BOS]",
                  "<|endoftext|>"),
    "mask_token": ("<mask>", "[MASK]"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "unk_token": ("<unk>", "[UNK]")}

Allowed = Literal["all"] | Collection[str]          # which special tokens a text may spell: see encode()
PIECE = 2**16                                       # least number of characters in a piece of a long text
PARTS = 16                                          # pieces that encode_in_parts() encodes at once
AT_ONCE = 64                                        # texts encoded at once: the library uses about 100 bytes a token


class Tokenizer:
    """A Hugging Face tokenizer (`rust`, a tokenizers.Tokenizer) that takes and returns NumPy arrays of ids.

    >>> from pyllama.text.tokenizer import Tokenizer
    >>> tokenizer = Tokenizer.characters("hello")
    >>> tokenizer.encode("hole").tolist(), tokenizer.vocab_size
    ([1, 3, 2, 0], 4)
    >>> tokenizer.decode([1, 0, 2, 2, 3])
    'hello'
    """

    def __init__(self, rust: tokenizers.Tokenizer, settings: dict[str, Any] | None = None, bare: bool = False):
        """Wrap a tokenizer of the library.

        settings    the content of tokenizer_config.json, such as the names of the special tokens and chat_template
        bare        no special tokens belong around a text but those that its post-processor adds
        """
        # A tokenizer.json may truncate or pad texts, which would silently shorten a corpus.
        rust.no_truncation()
        rust.no_padding()
        self.rust, self.settings, self.bare = rust, settings or {}, bare

    # Constructors

    @classmethod
    def characters(cls, text: str) -> "Tokenizer":
        """One token for each character of the text, in code-point order.  Raises UserError for an empty text."""
        if not text:
            raise UserError("the text is empty, so it has no characters for a vocabulary; give some text")
        return cls(alphabets.characters(sorted(set(text))))

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """256 tokens, one for each byte of UTF-8.  They encode any text and need no training."""
        return cls(alphabets.single_bytes())

    @classmethod
    def byte_pairs(cls, texts: Iterable[str], vocab_size: int,
                   special: Sequence[str] = ("<|endoftext|>",), alone: str = "", spaces: bool = True
                   ) -> "Tokenizer":
        """Learn byte-level BPE from the texts, as in GPT-2.

        The special tokens come first (ids 0, 1, ...), then the 256 bytes, then the merges.  Any text can be encoded.

        vocab_size   the number of tokens; the result has fewer if the texts have no more pairs
        alone        a regular expression; no token has a match of it together with other text
        spaces       False: white space separates tokens but is in none, so decoding joins words

        Raises UserError if vocab_size is too small for the bytes and the special tokens.

        Source: Sennrich et al., 2016; Radford et al., 2019.
        """
        least = 256 + len(special)
        if vocab_size < least:
            raise UserError(f"vocab_size {vocab_size} is too small: 256 bytes and {len(special)} special tokens "
                            f"need {least}; make it larger, or use a character or byte tokenizer")
        rust = tokenizers.Tokenizer(models.BPE())
        splits = [(alone, "isolated")] * bool(alone) + [(r"\s+", "removed")] * (not spaces)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.pre_tokenizer = words if not splits else pre_tokenizers.Sequence(
            [*(pre_tokenizers.Split(tokenizers.Regex(regex), behavior) for regex, behavior in splits), words])
        rust.decoder = decoders.ByteLevel()
        rust.train_from_iterator(borders.pieces(texts), trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        return cls(rust)

    @classmethod
    def words(cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = (), unknown: str = "<unk>"
              ) -> "Tokenizer":
        """Learn a vocabulary of words, as for word vectors: one token for each frequent word or punctuation mark.

        All others are encoded as `unknown`.  Decoding puts a space between any two tokens.
        """
        rust = tokenizers.Tokenizer(models.WordLevel(unk_token=unknown))
        rust.pre_tokenizer = pre_tokenizers.Whitespace()
        rust.train_from_iterator(borders.pieces(texts), trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=[*special, unknown], show_progress=False))
        return cls(rust)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json, given the file or its folder, with the settings in tokenizer_config.json beside it.

        If these have add_bos_token or add_eos_token, they decide about the special tokens around a text.  Raises
        UserError if a file cannot be read.
        """
        tokenizer = cls(*tokenizer_files.read(path))
        present, wanted = [], []
        for ids, role in zip(frames.around(tokenizer.rust), ("bos_token", "eos_token"), strict=True):
            add, own = tokenizer.settings.get(f"add_{role}"), tokenizer.special_token(role)
            present.append([tokenizer.rust.id_to_token(i) for i in ids])
            wanted.append([own] if add is True and not ids else [] if add is False and present[-1] == [own] else
                          present[-1])
        if wanted != present and max(map(len, wanted)) < 2:
            first, last = ((*tokens, None)[0] for tokens in wanted)
            tokenizer = cls(frames.framed(tokenizer.rust, first, last), tokenizer.settings)
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into the folder, each completely or not at all."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            rewrite(Path(folder) / name, [text.encode()])

    def files(self, types: bool = False) -> dict[str, str]:
        """{name: text} of the files that save() writes.  types: the model takes token types, as BERT does."""
        roles = {role: token for role in NAMES if (token := self.special_token(role)) is not None}
        inputs = ["input_ids", *["token_type_ids"] * types, "attention_mask"]
        return tokenizer_files.written(self.rust, self.settings, roles, inputs)

    # Properties

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id plus 1: the rows an embedding needs, even if some ids have no token."""
        return tokenizer_files.ids_end(self.rust)

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256, in hexadecimal, of the JSON as the library writes it, whatever the formatting of the file was."""
        return sha256(self.rust.to_str().encode()).hexdigest()

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends a text, or None."""
        return self._id_of("eos_token")

    @property
    def bos_id(self) -> int | None:
        """The id of the token that starts a text, or None.  GPT-2's is its end of text."""
        return self._id_of("bos_token")

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token, or None."""
        return self._id_of("mask_token")

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token, or None."""
        return self._id_of("pad_token")

    @property
    def special_ids(self) -> list[int]:
        """The ids of the special tokens, sorted."""
        return sorted(self._special.values())

    @functools.cached_property
    def _special(self) -> dict[str, int]:
        """{text: id} of the special tokens."""
        return {token.content: i for i, token in self.rust.get_added_tokens_decoder().items() if token.special}

    def special_token(self, role: str) -> str | None:
        """The token with a role, such as "eos_token": the one that the settings name, or else known by NAMES; or None.

        A token that the vocabulary lacks has no role.
        """
        named = self.settings.get(role)
        named = named.get("content") if isinstance(named, dict) else named
        if isinstance(named, str) and self.rust.token_to_id(named) is not None:
            return named
        return next((name for name in NAMES[role] if name in self._special), None)

    def _id_of(self, role: str) -> int | None:
        """The id of the token with this role, or None."""
        token = self.special_token(role)
        return None if token is None else self.rust.token_to_id(token)

    # Encoding and decoding

    def encode(self, text: str, add_special_tokens: bool = False, allowed_special: Allowed = ()) -> np.ndarray:
        """The ids [N] of a text, in `dtype`.

        add_special_tokens   add those with which tokenizer.json surrounds a text
        allowed_special      the special tokens that become themselves where the text spells them, or "all", as in
                             transformers.  The others are ordinary text: a document may quote </s>

        Raises UserError, with the position, for a character that the vocabulary lacks, if there is no unknown token,
        and for a lone surrogate.
        """
        return self.encode_batch([text], add_special_tokens, allowed_special)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False,
                     allowed_special: Allowed = ()) -> list[np.ndarray]:
        """Encode each text as encode() does, in parallel."""
        if self._table:
            try:
                return [self._looked_up(text) for text in texts]
            except UnicodeEncodeError:
                _refuse_surrogates(texts)
        pieces = [[text] if add_special_tokens or allowed_special == "all" else self._pieces(text) for text in texts]
        encoded = (np.array(encoding.ids, self.dtype) for encoding in self._encode(
            "encode_batch_fast", [piece for parts in pieces for piece in parts], add_special_tokens, allowed_special))
        return [np.concatenate([next(encoded) for _ in parts]) for parts in pieces]

    def encode_with_positions(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids [N], positions [N 2]) of each text, without special tokens: token i is text[first:past].

        The positions (first, past) exclude white space at both ends, so a token of white space has first == past.  A
        token for some bytes of a character has the positions of the character.  Raises UserError as encode() does.
        """
        return [(np.array(encoding.ids, self.dtype),
                 np.array([_trimmed(text, *offsets) for offsets in encoding.offsets], int).reshape(-1, 2))
                for text, encoding in zip(texts, self._encode("encode_batch", texts), strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """The text of ids [N].  Bytes that are not UTF-8, such as half a character, become U+FFFD.

        skip_special_tokens   leave special tokens out of the text

        Raises IndexError for an id outside the vocabulary, which the library would silently skip.
        """
        array = np.asarray(ids, np.int64)
        if array.size and not 0 <= (wrong := array.min() if array.min() < 0 else array.max()) < self.vocab_size:
            raise IndexError(f"id {wrong} is outside the vocabulary of {self.vocab_size} tokens")
        return self.rust.decode(array.tolist(), skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = False) -> "Stream":
        """A decoder for ids that arrive one at a time."""
        return Stream(self, skip_special_tokens)

    @functools.cached_property
    def _table(self) -> alphabets.Table | None:
        """The table of a character or byte tokenizer, or None."""
        return alphabets.table_of(self.rust)

    def _looked_up(self, text: str) -> np.ndarray:
        """The ids of a text, from _table: in pieces, because each takes several times its size."""
        assert self._table is not None
        found, at = np.empty(self._table.count(text), self.dtype), 0
        for start in range(0, len(text), PIECE):
            piece = text[start:start + PIECE]
            ids = self._table.ids(piece)
            if ids.min() < 0:
                raise _lacking(text, piece[int(ids.argmin())])
            found[at:at + len(ids)] = ids
            at += len(ids)
        return found

    def encode_in_parts(self, text: str) -> Iterator[np.ndarray]:
        """Yield encode(text) in parts, without special tokens, so that a long text takes little memory."""
        pieces = [text[start:start + PIECE] for start in range(0, len(text), PIECE)] if self._table else \
            self._pieces(text)
        try:
            for start in range(0, len(pieces), PARTS):
                yield np.concatenate(self.encode_batch(pieces[start:start + PARTS]))
        except UserError:
            self.encode(text)                       # to raise it with the place in the whole text
            raise

    def _pieces(self, text: str) -> list[str]:
        """Cut a long text where no token can cross, to encode it in parallel and in bounded memory."""
        if len(text) <= PIECE or self._border is None:
            return [text]
        return borders.cut(text, self._border, PIECE)

    @functools.cached_property
    def _border(self) -> re.Pattern | None:
        return borders.border(self.rust)

    def _encode(self, method: str, texts: Sequence[str], add_special_tokens: bool = False,
                allowed_special: Allowed = ()) -> Iterator[tokenizers.Encoding]:
        """Yield the library's encoding of each text.  Raises UserError if the library cannot encode one."""
        _refuse_surrogates(texts)
        rust = self._reading(texts, allowed_special)
        for start in range(0, len(texts), AT_ONCE):
            batch = texts[start:start + AT_ONCE]
            for text in batch:
                if character := self._alphabet.missing(text):
                    raise _lacking(text, character)
            try:
                encodings = getattr(rust, method)(batch, add_special_tokens=add_special_tokens)
            except Exception as error:              # the library raises nothing narrower
                raise UserError(f"the tokenizer cannot encode this text: {error}; use one with an unknown token, "
                                f"or a byte-level one") from None
            yield from encodings

    def _reading(self, texts: Sequence[str], allowed: Allowed) -> tokenizers.Tokenizer:
        """The library's tokenizer that reads the texts as encode() does: `rust` itself if they spell no special token.

        The other one is made when it is first needed, because a large vocabulary takes a second.
        """
        if allowed == "all" or not self._special.keys() - set(allowed):
            return self.rust
        if self._spells_special and not any(map(self._spells_special.search, texts)):
            return self.rust
        return self._ordinary(frozenset(allowed))

    @functools.cached_property
    def _spells_special(self) -> re.Pattern | None:
        """A pattern that finds every special token in a text; None if the library searches after normalizing it."""
        special = [token for token in self.rust.get_added_tokens_decoder().values() if token.special]
        return None if any(token.normalized for token in special) and self.rust.normalizer else \
            re.compile("|".join(re.escape(token.content) for token in special))

    @functools.cached_property
    def _ordinary(self) -> Callable[[frozenset[str]], tokenizers.Tokenizer]:
        return functools.cache(functools.partial(ordinary.ordinary, self.rust))

    @functools.cached_property
    def _alphabet(self) -> ordinary.Alphabet:
        return ordinary.Alphabet(self.rust)


class Stream:
    """Decode ids one at a time and return text as soon as no later id can change it, never half a character.

    The results of push() and a final flush(), joined, are decode() of all ids, if the decoder only appends text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False):
        self._decode = functools.partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._shown = 0                             # number of _ids whose text was returned; they stay as context:
                                                    # some decoders treat the first token of a text differently

    def push(self, token_id: int) -> str:
        """Append an id and return the new text: "" while a character is incomplete."""
        self._ids.append(int(token_id))
        return "" if self._decode(self._ids).endswith("\ufffd") else self.flush()

    def flush(self) -> str:
        """Return the rest of the text, with U+FFFD for an incomplete character."""
        new = self._decode(self._ids)[len(self._decode(self._ids[:self._shown])):]
        self._ids = self._ids[self._shown:]
        self._shown = len(self._ids)
        return new


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        if not text.isascii() and (lone := re.search("[\ud800-\udfff]", text)):
            raise UserError(f"U+{ord(lone[0]):04X}{_position(text, lone.start())} is half of a surrogate pair, "
                            f"which UTF-8 cannot encode; remove it")


def _lacking(text: str, character: str) -> UserError:
    """The error for a character that the vocabulary lacks."""
    return UserError(f"the vocabulary has no {character!r} (U+{ord(character):04X})"
                     f"{_position(text, text.index(character))}; remove it, build the tokenizer from text that has it, "
                     f"or use a byte-level one")


def _trimmed(text: str, first: int, past: int) -> tuple[int, int]:
    """The positions of text[first:past] without white space at either end."""
    past = first + len(text[first:past].rstrip())
    return past - len(text[first:past].lstrip()), past


def _position(text: str, at: int) -> str:
    return f" at position {at} (line {text.count(chr(10), 0, at) + 1})"
