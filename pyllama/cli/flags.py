"""The flags of a command: its parameters, and the fields of those parameters that are dataclasses.

    def train(text: Text, out_dir: Path = Path("out")):     --out_dir, and a flag for each field of Text
    def resume(run: Path, /):                               run is positional on the command line too
    def generate(options: Annotated[dict, Settings]):       a flag for each field; only those that are set are passed

The help of a flag is the comment beside its field, or its line under "Args:" in the docstring.
"""
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pyllama.errors import UserError

METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
WANTED = {int: "a whole number", float: "a number"}


class Flag(NamedTuple):
    """One flag, or one positional argument, of a command."""
    name: str
    type: Any                               # bool, int, float, str, Path or a Literal, without "| None"
    default: Any                            # MISSING if it is required
    help: str
    owner: str                              # the parameter whose dataclass it is a field of; "" for a parameter
    positional: bool = False
    several: bool = False                   # a tuple of values
    optional: bool = False                  # None is a value
    words: tuple[str, ...] = ()             # values of a switch besides True and False

    @property
    def required(self) -> bool:
        """Must the flag be given, because it has no default?"""
        return self.default is MISSING

    @property
    def label(self) -> str:
        """The flag as it is typed; of a positional argument, its name in capitals."""
        return self.name.upper() if self.positional else f"--{self.name}"

    @property
    def metavar(self) -> str:
        """The value as the help shows it, such as INT or {cpu,cuda}; empty for switches and positional arguments."""
        if self.type is bool or self.positional:
            return ""
        value = f"{{{','.join(self.choices)}}}" if self.choices else METAVARS[self.type]
        return f"{value} ..." if self.several else value

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal; else none."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    def value(self, word: str) -> Any:
        """The word as a value.  Raises UserError if it is not one."""
        if self.optional and word == "None":
            return None
        if self.choices:
            if word not in self.choices:
                raise UserError(f"{self.label} is {word!r}; it must be one of {', '.join(self.choices)}")
            return word
        if self.type is Path and "\0" in word:
            raise UserError(f"{self.label} is {word!r}; a path has no zero character")
        try:
            value = self.type(word)
        except ValueError:
            raise UserError(f"{self.label} is {word!r}; it must be {WANTED[self.type]}") from None
        if self.type is int and abs(value) >= 2 ** 63:
            raise UserError(f"{self.label} is {word}; it must be less than 2 ** 63")
        return value


def flags_of(command: Callable) -> list[Flag]:
    """The flags of a function, or of a dataclass, in the order of its signature."""
    flags = []
    helps = comments(command) if is_dataclass(command) else arguments(command)
    hidden = {f.name for f in fields(command) if not f.metadata.get("flag", True)} if is_dataclass(command) else ()
    for name, parameter in inspect.signature(command).parameters.items():
        annotation = parameter.annotation
        if holders := dataclasses_of(annotation):
            flags += [flag._replace(owner=name) for holder in holders for flag in flags_of(holder)]
            continue
        if name in hidden:
            continue
        kind, optional, several = simplified(annotation)
        default = MISSING if parameter.default is parameter.empty else parameter.default
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        flags.append(Flag(name, kind, default, helps.get(name, ""), "", positional, several, optional,
                          words_of(annotation)))
    return flags


def dataclasses_of(annotation: Any) -> tuple[Any, ...]:
    """The dataclasses whose fields are flags.

    A parameter is one dataclass, which is constructed, or Annotated[dict, ...] with some: {name: value} of the flags
    that are set.
    """
    if get_origin(annotation) is Annotated:
        return annotation.__metadata__
    return (annotation,) if is_dataclass(annotation) else ()


def simplified(annotation: Any) -> tuple[Any, bool, bool]:
    """(type, is None a value?, is it a tuple of values?) of an annotation such as int | None or tuple[str, ...]."""
    options = get_args(annotation)
    if get_origin(annotation) is tuple:
        return options[0], False, True
    if bool in options:
        return bool, False, False
    if NoneType in options:
        return next(option for option in options if option is not NoneType), True, False
    return annotation, False, False


def words_of(annotation: Any) -> tuple[str, ...]:
    """The values of a switch besides True and False, of an annotation such as bool | Literal["never"]."""
    options = get_args(annotation)
    literals = [option for option in options if get_origin(option) is Literal] if bool in options else []
    return tuple(word for literal in literals for word in get_args(literal))


def comments(cls: type) -> dict[str, str]:
    """{field: the comment beside it} of a dataclass and its bases; empty where Python has no source code."""
    try:
        source = "".join(inspect.getsource(base) for base in reversed(cls.__mro__) if is_dataclass(base))
    except OSError:
        return {}
    return dict(re.findall(r"^    (\w+): .*?# (.*)$", source, re.MULTILINE))


def arguments(command: Callable) -> dict[str, str]:
    """{parameter: its help} of a docstring's lines under "Args:"; a line that is indented further continues one."""
    _, _, listed = (inspect.getdoc(command) or "").partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
