"""What the models' configurations have in common: a config.json, read and written, and refusals of what cannot be."""
import sys
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any, ClassVar

from pyllama.errors import UserError

NUMBERS: dict[Any, Any] = {float: int | float}                              # JSON writes 1.0 as 1


@dataclass(frozen=True)
class Config:
    """The base of LlamaConfig, BertConfig, ...; fields have the names of Hugging Face's config.json."""

    TYPE: ClassVar[str] = ""                                # model_type
    ONLY: ClassVar[dict[str, Any]] = {}                     # keys that change the mathematics: the one value known here
    HEADS: ClassVar[dict[str, str]] = {}                    # Config.head -> Hugging Face's name of the architecture

    extra: dict = field(default_factory=dict, kw_only=True) # keys of a config.json that mean nothing here; written back

    @property
    def model(self) -> ModuleType:
        """The module it belongs to, with init, loss and the rest."""
        return sys.modules[type(self).__module__]

    @classmethod
    def from_dict(cls, stored: dict):
        """From a config.json.  Unknown keys are kept in `extra`; those that change the mathematics refused."""
        for name, only in {"model_type": cls.TYPE, **cls.ONLY}.items():
            if stored.get(name, only) != only:
                raise UserError(f"config.json says {name} = {stored[name]!r}; {cls.TYPE} here knows only {only!r}")
        known = {f.name for f in fields(cls)} - {"extra"}
        told = {*known, "model_type", *(("architectures",) if cls.HEADS else ())}         # to_dict() says it anew
        own = {k: v for k, v in stored.items() if k in known}
        for f in fields(cls):
            wanted = NUMBERS.get(f.type, f.type) if f.type in (int, float, bool, str) else object
            if not isinstance(own.get(f.name, f.default), wanted):
                raise UserError(f"config.json says {f.name} = {own[f.name]!r}, but it must be of type "
                                f"{getattr(f.type, '__name__', f.type)}; mend it")
        named = [head for head, name in cls.HEADS.items() if name in (stored.get("architectures") or ())]
        if named and "head" not in stored:
            own["head"] = named[0]
        return cls(**own, extra={k: v for k, v in stored.items() if k not in told})

    def to_dict(self) -> dict:
        """For config.json: what Hugging Face reads, and our own keys beside it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        named = {"architectures": [self.HEADS[own["head"]]]} if "head" in own else {}
        return {**self.extra, "model_type": self.TYPE, **named, **own}

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
