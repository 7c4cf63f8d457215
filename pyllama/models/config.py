"""The base of all configurations: a config.json, read and written, refusals, and what a family says about itself."""
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from pyllama.errors import UserError

NUMBERS: dict[Any, Any] = {float: int | float}                              # JSON writes 1.0 as 1
Learns = Literal["next token", "masked tokens", "corrupted text"]


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The shape of a model in words that all families share; small unless said otherwise."""

    vocab_size: int                                         # V
    context: int                                            # tokens that it reads at once
    head: Any                                               # one of the family's HEADS
    width: int = 128                                        # D
    layers: int = 2                                         # L; of an encoder-decoder on each side
    heads: int = 4                                          # H, where there are heads
    hidden: int | None = None                               # F; None: 4 D, in a LLaMA 8/3 D
    dropout: float = 0.1
    pad_id: int = 0
    bos_id: int | None = 1
    eos_id: int | None = 2

    @property
    def feed_forward(self) -> int:
        """F"""
        return 4 * self.width if self.hidden is None else self.hidden


@dataclass(frozen=True)
class Config:
    """The base of LlamaConfig, BertConfig, ...; fields have the names of Hugging Face's config.json.

    Every configuration has vocab_size and hidden_size, as a field or a property.  One whose model continues texts also
    has max_position_embeddings, bos_token_id and eos_token_id and, for its caches, num_hidden_layers, groups and
    head_width (see kv_cache.py).
    """

    TYPE: ClassVar[str] = ""                                # model_type
    ONLY: ClassVar[dict[str, Any]] = {}                     # keys that change the mathematics: the one value known here
    HEADS: ClassVar[dict[str, str]] = {}                    # head -> Hugging Face's name of the architecture
    BODY: ClassVar[tuple[str, ...]] = ()                    # prefixes of the parameters that every head needs
    DROPOUTS: ClassVar[tuple[str, ...]] = ()                # the fields that are rates of dropout
    LEARNS: ClassVar[dict[str, Learns]] = {}                # head -> what it learns from plain text
    model: ClassVar[Any]                                    # the module that it belongs to: see pyllama.models.MODELS

    extra: dict = field(default_factory=dict, kw_only=True) # keys of a config.json that mean nothing here; written back

    @classmethod
    def small(cls, shape: Dimensions):
        """The configuration of this shape.  Raises UserError if the family cannot have it."""
        raise NotImplementedError(f"{cls.__name__} has no small(shape)")

    @property
    def head(self) -> str:
        """What is on top.  A family with several heads has a field of this name."""
        return next(iter(self.HEADS), "")

    @property
    def learns(self) -> Learns | None:
        """What a model with this head learns from plain text; None: nothing."""
        return self.LEARNS.get(self.head)

    @classmethod
    def names(cls) -> set[str]:
        """The names of the fields."""
        return {f.name for f in fields(cls)} - {"extra"}

    @classmethod
    def from_dict(cls, stored: dict):
        """From a config.json.  Unknown keys are kept in `extra`; those that change the mathematics refused."""
        for name, only in {"model_type": cls.TYPE, **cls.ONLY}.items():
            if stored.get(name, only) != only:
                raise UserError(f"config.json says {name} = {stored[name]!r}; {cls.TYPE} here knows only {only!r}")
        names = cls.names()
        written_anew = {*names, "model_type", *(("architectures",) if cls.HEADS else ())}     # by to_dict()
        values = {name: value for name, value in stored.items() if name in names}
        for f in fields(cls):
            wanted = NUMBERS.get(f.type, f.type) if f.type in (int, float, bool, str) else object
            if not isinstance(values.get(f.name, f.default), wanted):
                raise UserError(f"config.json says {f.name} = {values[f.name]!r}, but it must be of type "
                                f"{getattr(f.type, '__name__', f.type)}; fix it")
        architectures = stored.get("architectures") or ()
        heads = [head for head, architecture in cls.HEADS.items() if architecture in architectures]
        if heads and "head" in names and "head" not in stored:
            values["head"] = heads[0]
        if "num_labels" in names and stored.get("id2label"):
            values.setdefault("num_labels", len(stored["id2label"]))
        return cls(**values, extra={name: value for name, value in stored.items() if name not in written_anew})

    def to_dict(self) -> dict:
        """For config.json: what Hugging Face reads, and our own keys beside it."""
        values = {name: getattr(self, name) for name in (f.name for f in fields(self)) if name != "extra"}
        architectures = {"architectures": [self.HEADS[self.head]]} if self.HEADS else {}
        return {**self.extra, "model_type": self.TYPE, **architectures, **values}

    def check(self, *, positive=(), shares=(), multiples=(), choices=None):
        """Raise UserError in one sentence where a field cannot be.

        positive: None or at least 1.  shares: in 0 <= p < 1.  multiples: pairs, the first one of the second.
        choices: the values there are.
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
                                f"change one")
        for name, values in (choices or {}).items():
            if getattr(self, name) not in values:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}")
