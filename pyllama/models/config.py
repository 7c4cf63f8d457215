"""The base class of all configurations: it reads, checks and writes a config.json, and describes a family."""
import sys
from dataclasses import dataclass, field, fields, replace
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import numpy as np

from pyllama.errors import UserError, shown, with_article

OF_TASKS = ("classification", "tagging", "span")                            # heads whose scores have names
SHARED = {"architectures": list[str], "id2label": dict, "label2id": dict}      # keys that several families read
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "an object"}
MOST = 2**31                                                                # above every size, in magnitude
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
OURS = "pyllama-"                                       # prefix of the model_type of models that transformers lacks
Learns = Literal["next token", "masked tokens", "corrupted text"]


def fits(value: Any, kind: Any) -> bool:
    """May a value from a JSON file stand for a field of this type?  Neither True nor NaN is a number."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str)                       # which ones: see Config.check
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(each, arguments[0]) for each in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max         # JSON writes 1.0 as 1
    if kind is int:
        return type(value) is int and abs(value) < MOST
    return kind is Any or isinstance(value, kind or type(None))


def described(kind: Any) -> str:
    """The values that fits() accepts, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(described, arguments))
    if origin in (list, tuple):
        return f"a list, each entry {described(arguments[0])}"
    return "a text" if origin is Literal else WORDS.get(kind, "null")


def demanded(value: Any, kind: Any) -> str:
    """What a value that does not fit must be, in words."""
    large = type(value) is int and not isinstance(kind, str) and int in (kind, *get_args(kind))
    return f"below {MOST:,} in magnitude" if large else described(kind)


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The size of a model in terms that all families share.  The defaults are small."""

    vocab_size: int                                         # V
    context: int                                            # context length in tokens
    head: Any                                               # one of the family's HEADS
    width: int = 128                                        # D
    layers: int | None = None                               # L; of an encoder-decoder, on each side; None: see depth
    heads: int = 4                                          # H; unused by an LSTM
    hidden: int | None = None                               # F; None: 4 D, in LLaMA 8/3 D
    dropout: float = 0.1
    pad_id: int = 0
    bos_id: int | None = 1
    eos_id: int | None = 2

    @property
    def depth(self) -> int:
        """L of a transformer"""
        return 2 if self.layers is None else self.layers

    @property
    def feed_forward(self) -> int:
        """F"""
        return 4 * self.width if self.hidden is None else self.hidden


@dataclass(frozen=True)
class Config:
    """The base of LlamaConfig, BertConfig, ...; the fields have the names of Hugging Face's config.json.

    Every configuration has vocab_size and hidden_size, as a field or a property.  If its model continues text, it also
    has max_position_embeddings, bos_token_id and eos_token_id and, for its caches, num_hidden_layers, groups and
    head_width (see kv_cache.py).  Constructing one raises UserError if a field is invalid.
    """

    TYPE: ClassVar[str] = ""                                # model_type
    ONLY: ClassVar[dict[str, Any]] = {}                     # keys that change the mathematics: the supported value
    HEADS: ClassVar[dict[str, str]] = {}                    # head -> Hugging Face's name of the architecture
    ALIASES: ClassVar[dict[str, str]] = {}                  # other architectures whose weights have a head
    BODY: ClassVar[tuple[str, ...]] = ()                    # prefixes of the parameters that all heads share
    DROPOUTS: ClassVar[tuple[str, ...]] = ()                # the fields that are dropout rates
    NO_DROPOUT: ClassVar[dict[str, float]] = {}             # rates that are 0 here and not by transformers' defaults
    USUAL_IDS: ClassVar[dict[str, int]] = {}                # of special tokens: transformers' defaults, if not ours
    UNUSED: ClassVar[tuple[str, ...]] = ()                  # the Dimensions that small() does not use
    LEARNS: ClassVar[dict[str, Learns]] = {}                # head -> its objective on plain text
    TRANSPOSED: ClassVar[tuple[str, ...]] = ()              # ends of the names of matrices stored as (inputs, outputs)
    model: ClassVar[Any]                                    # the family's module: see pyllama.models.MODELS

    extra: dict = field(default_factory=dict, kw_only=True) # unknown keys of a config.json; written back

    @classmethod
    def small(cls, shape: Dimensions):
        """The configuration of this size.  Raises UserError if the family does not support it."""
        raise NotImplementedError(f"{cls.__name__} has no small(shape)")

    @property
    def head(self) -> str:
        """The name of the head.  A family with several heads has a field of this name."""
        return next(iter(self.HEADS), "")

    @property
    def context(self) -> int | None:
        """The longest text in tokens; None: it has no limit."""
        return getattr(self, "max_position_embeddings", None)

    @property
    def learns(self) -> Learns | None:
        """The training objective of this head on plain text; None: it has none."""
        return self.LEARNS.get(self.head)

    @property
    def takes_types(self) -> bool:
        """Does the model read the types of tokens, which tell a pair's two texts apart?"""
        return getattr(self, "type_vocab_size", 1) > 1

    @property
    def shares(self) -> bool:
        """Do layers share weights, or are matrices or the table of embeddings factorized?  See sharing.py."""
        return False

    @property
    def is_uneven(self) -> bool:
        """Do layers have different numbers of heads or channels?  See uneven.py."""
        return False

    def groups_of(self, layer: int) -> int:
        """G of a layer, for its cache."""
        return self.groups                              # type: ignore[attr-defined]

    @property
    def unused_dropouts(self) -> dict[str, float]:
        """{name: rate} of the dropouts in a config.json that this family does not apply in training."""
        return {name: rate for name, rate in self.extra.items()
                if "drop" in name and isinstance(rate, int | float) and rate > 0}

    @classmethod
    def names(cls) -> set[str]:
        """The names of the fields."""
        return {f.name for f in fields(cls)} - {"extra"}

    @classmethod
    def from_dict(cls, stored: dict):
        """The configuration from a config.json.  Unknown keys are kept in `extra`.

        Raises UserError for a value of the wrong type, or one that is not supported (see ONLY).
        """
        for name, only in {"model_type": cls.TYPE, **cls.ONLY}.items():
            if stored.get(name, only) != only:
                raise UserError(f"config.json has {name} = {shown(stored[name])}; {cls.TYPE} supports only "
                                f"{shown(only)}")
        for name, kind in SHARED.items():
            if stored.get(name) is not None and not fits(stored[name], kind):
                raise UserError(f"config.json has {name} = {shown(stored[name])}, but it must be "
                                f"{described(kind)}; fix it")
        names = cls.names()
        stored = cls.with_known_ids(stored)
        # to_dict() writes these again, and parameters are stored as float32 or float64 whatever they were.
        rewritten = {*names, "model_type", "dtype", "torch_dtype", *(("architectures",) if cls.HEADS else ())}
        values = {name: value for name, value in stored.items() if name in names}
        for f in fields(cls):
            if f.name in values and not fits(values[f.name], f.type):
                raise UserError(f"config.json has {f.name} = {shown(values[f.name])}, but it must be "
                                f"{demanded(values[f.name], f.type)}; fix it")
        architectures = stored.get("architectures") or []
        heads = [head for architecture in architectures if (head := cls.head_of(architecture))]
        if heads and "head" in names and "head" not in stored:
            values["head"] = heads[0]
        if "num_labels" in names and stored.get("id2label"):
            values.setdefault("num_labels", len(stored["id2label"]))
        extra = {name: value for name, value in stored.items() if name not in rewritten}
        config = cls(**values, extra=extra)
        if "head" in stored or stored.get("id2label") or config.head not in OF_TASKS:
            return config
        classes = {str(i): f"LABEL_{i}" for i in range(getattr(config, "num_labels", 0))}
        return replace(config, extra={**extra, "id2label": classes})               # as transformers does

    @classmethod
    def head_of(cls, architecture: str) -> str | None:
        """The head of an architecture, by Hugging Face's name; None: it is not supported."""
        heads = {name: head for head, name in cls.HEADS.items()} | cls.ALIASES
        return heads.get(architecture)

    @classmethod
    def with_known_ids(cls, stored: dict) -> dict:
        """A config.json whose special tokens are in its vocabulary, or else None, as other programs ignore them.

        Raises UserError for an end token that is not an id, or outside the vocabulary and not the family's usual one.
        """
        defaults = {f.name: f.default for f in fields(cls)} | cls.USUAL_IDS
        V: Any = stored.get("vocab_size", defaults.get("vocab_size"))
        for name in SPECIAL_IDS if type(V) is int else ():
            value = stored.get(name, defaults.get(name))
            ids: list[Any] = value if isinstance(value, list) else [value]
            if name not in defaults or value is None:
                continue
            if not all(type(i) is int for i in ids):
                raise UserError(f"config.json has {name} = {shown(value)}, but it must be an id or a list of "
                                f"ids; fix it")
            known = all(0 <= i < V for i in ids)
            if name == "eos_token_id" and not known and value != defaults[name]:
                raise UserError(f"config.json has {name} = {shown(value)}, outside the vocabulary of {V} tokens; set "
                                f"it to the id of the end token")
            stored = {**stored, name: value if known else None}
        return stored

    @classmethod
    def notes_on(cls, stored: dict) -> tuple[str, ...]:
        """Notes for the user on how a config.json is read."""
        return ()

    def training_notes(self) -> tuple[str, ...]:
        """Notes for the user on what training does otherwise than transformers: dropout rates that are not applied."""
        rates = ", ".join(f"{name} {rate}" for name, rate in self.unused_dropouts.items())
        return (f"dropouts of the model that training does not apply: {rates}",) if rates else ()

    def copies(self) -> dict[str, str]:
        """The tensors of a state dict that are not parameters, because they equal one: {copy: parameter}."""
        return {}

    def spares(self, name: str) -> bool:
        """May a state dict lack this parameter, because nothing is computed from it?"""
        return False

    def fitted_to(self, tensors: dict):
        """The configuration for these tensors, {name: array} with the names of a state dict: untied if copies differ.

        Raises UserError, with the name of the copy, if the family cannot be untied.
        """
        for copy, name in self.copies().items():
            if copy in tensors and name in tensors and not np.array_equal(tensors[copy], tensors[name]):
                if "tie_word_embeddings" not in self.names():
                    raise UserError(f"{copy} differs from {name}, but in {with_article(self.TYPE)} they are the same "
                                    f"matrix; give a model in which they are")
                ties = {"tie_word_embeddings", "share_embeddings"} & self.names()
                changes: dict[str, Any] = dict.fromkeys(ties, False)
                return replace(self, **changes)
        return self

    def same_in_transformers(self) -> type["Config"] | None:
        """The class of the transformers model that computes the same; None: there is none."""
        return type(self)

    def to_dict(self) -> dict:
        """The contents of config.json: the keys that Hugging Face reads, and our own.

        The model_type is that of the transformers model that computes the same.  If there is none, it is one that
        transformers does not know, so that it refuses the folder instead of computing something else.
        """
        values = {name: getattr(self, name) for name in (f.name for f in fields(self)) if name != "extra"}
        same = None if self.shares or self.is_uneven else self.same_in_transformers()
        kind = same.TYPE if same else f"{OURS}{self.TYPE}"
        architectures = {"architectures": [(same or self).HEADS[self.head]]} if self.HEADS else {}
        return {**self.NO_DROPOUT, **self.extra, "model_type": kind, **architectures, **values}

    def check(self, *, positive=(), shares=(), multiples=(), choices=None):
        """Raise UserError for the first invalid field.

        positive     names of fields that must be None or at least 1
        shares       names of fields that must be in 0 <= p < 1
        multiples    pairs of names; the first must be a multiple of the second
        choices      {name: supported values}
        """
        for name in positive:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in shares:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie in 0 <= p < 1")
        for name, part in multiples:
            if getattr(self, name) % getattr(self, part):
                raise UserError(f"{name} {getattr(self, name)} is not a multiple of {part} {getattr(self, part)}; "
                                f"change one of them")
        for name, values in (choices or {}).items():
            if getattr(self, name) not in values:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}")
