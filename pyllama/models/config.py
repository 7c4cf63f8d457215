"""The base class of all configurations: it reads, checks and writes a config.json, and describes a family."""
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from pyllama.errors import UserError

NUMBERS: dict[Any, Any] = {float: int | float}                              # JSON writes 1.0 as 1
Learns = Literal["next token", "masked tokens", "corrupted text"]


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
    BODY: ClassVar[tuple[str, ...]] = ()                    # prefixes of the parameters that all heads share
    DROPOUTS: ClassVar[tuple[str, ...]] = ()                # the fields that are dropout rates
    UNUSED: ClassVar[tuple[str, ...]] = ()                  # the Dimensions that small() does not use
    LEARNS: ClassVar[dict[str, Learns]] = {}                # head -> its objective on plain text
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
    def learns(self) -> Learns | None:
        """The training objective of this head on plain text; None: it has none."""
        return self.LEARNS.get(self.head)

    @property
    def takes_types(self) -> bool:
        """Does the model read the types of tokens, which tell a pair's two texts apart?"""
        return getattr(self, "type_vocab_size", 1) > 1

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
                raise UserError(f"config.json has {name} = {stored[name]!r}; {cls.TYPE} supports only {only!r}")
        names = cls.names()
        rewritten = {*names, "model_type", *(("architectures",) if cls.HEADS else ())}        # by to_dict()
        values = {name: value for name, value in stored.items() if name in names}
        for f in fields(cls):
            wanted = NUMBERS.get(f.type, f.type) if f.type in (int, float, bool, str) else object
            if not isinstance(values.get(f.name, f.default), wanted):
                raise UserError(f"config.json has {f.name} = {values[f.name]!r}, but it must be of type "
                                f"{getattr(f.type, '__name__', f.type)}; fix it")
        architectures = stored.get("architectures") or ()
        heads = [head for head, architecture in cls.HEADS.items() if architecture in architectures]
        if heads and "head" in names and "head" not in stored:
            values["head"] = heads[0]
        if "num_labels" in names and stored.get("id2label"):
            values.setdefault("num_labels", len(stored["id2label"]))
        return cls(**values, extra={name: value for name, value in stored.items() if name not in rewritten})

    def to_dict(self) -> dict:
        """The contents of config.json: the keys that Hugging Face reads, and our own."""
        values = {name: getattr(self, name) for name in (f.name for f in fields(self)) if name != "extra"}
        architectures = {"architectures": [self.HEADS[self.head]]} if self.HEADS else {}
        return {**self.extra, "model_type": self.TYPE, **architectures, **values}

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
