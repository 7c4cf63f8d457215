"""Errors that the user can fix, and optional packages."""
import importlib
from dataclasses import fields
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

DISTRIBUTION = "pyllama-reference"                          # what pip calls this package
EXTRAS = {                                                  # package -> the extra that installs it
    "matplotlib": "plot", "tensorboardX": "tensorboard", "sacrebleu": "tasks", "rouge_score": "tasks",
    "networkx": "graph", "rdflib": "graph", "cupy": "cuda13", "hypothesis": "testing",
    "pytest": "testing", "sympy": "study", "jinja2": "chat"}


class UserError(Exception):
    """A sentence that names the cause and the cure.  The command line prints it and exits with code 2.

    >>> import pyllama
    >>> try:
    ...     pyllama.load("not-there")
    ... except pyllama.UserError as error:
    ...     print(error)
    there is no model at not-there; give a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
    """


def shown(value: Any) -> str:
    """A value from a JSON file, in a message."""
    return "null" if value is None else "true" if value is True else "false" if value is False else repr(value)


def counted(number: int, noun: str) -> str:
    """The number with its noun, which takes an s in the plural.

    >>> from pyllama.errors import counted
    >>> counted(1, "row"), counted(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


SPELLED_OUT = "lstm", "mbart", "xlm"                        # read by their first letters


def with_article(noun: str) -> str:
    """The noun with a or an.

    >>> from pyllama.errors import with_article
    >>> with_article("bert"), with_article("lstm")
    ('a bert', 'an lstm')
    """
    return f"{'an' if noun.startswith((*'aeiou', *SPELLED_OUT)) else 'a'} {noun}"


def check_choices(settings: Any) -> None:
    """Raise UserError if a field of a dataclass whose type is a Literal has another value."""
    for field in fields(settings):
        value, choices = getattr(settings, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            raise UserError(f"{field.name} is {value!r}; it must be one of {', '.join(choices)}")


def check_options(options: dict[str, Any], *settings: type) -> None:
    """Raise UserError for an option that is not a field of one of these dataclasses."""
    names = [f.name for kind in settings for f in fields(kind)]
    if unknown := sorted(options.keys() - set(names)):
        raise UserError(f"there is no option {unknown[0]!r} here; the options are {', '.join(names)}")


def pip_install(package: str) -> str:
    """The command that installs a package of EXTRAS."""
    return f"pip install '{DISTRIBUTION}[{EXTRAS[package]}]'"


def optional(module: str, purpose: str) -> ModuleType:
    """Import a module of a package in EXTRAS, for a purpose such as "plot".

    Raises UserError if the package is not installed or does not load.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:                              # a package that does not load may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise UserError(f"{purpose} needs {package}, which is not installed: {pip_install(package)}") from None
        raise UserError(f"{package} is installed but does not load: {error}; remove it, then {pip_install(package)}"
                        ) from None
