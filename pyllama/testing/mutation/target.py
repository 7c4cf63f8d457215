"""The function of a user, by its name, and its mutants."""
import ast
import os
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

from pyllama.errors import UserError
from pyllama.testing import named
from pyllama.testing.mutation.mutants import Mutant, mutants_in
from pyllama.testing.mutation.planting import (
    NotPlantable,
    copied,
    definition_of,
    function_of,
    plant,
    rebuilt,
    same_code,
)
from pyllama.testing.mutation.trial import Candidate
from pyllama.testing.mutation.watching import Comparison, can_be_watched


class Target:
    """A Python function by its name.  It is looked up when the tests are imported: theirs is the one to mutate."""

    def __init__(self, name: str):
        self.name = name

    def functions(self) -> list[types.FunctionType]:
        return [self.function]

    def candidates(self) -> list[Candidate]:
        """Its mutants.  Raises UserError."""
        try:
            self.function = function_of(found(self.name))
            self.original, definition = copied(self.function), definition_of(self.function)
        except NotPlantable as error:
            raise UserError(f"no bug can be planted in {self.name}: {error}") from None
        file = Path(self.function.__code__.co_filename).name
        mutants = [*mutants_in(definition, self.name, file)]            # type: ignore[arg-type]
        self.signature = ast.dump(definition.args)
        if not mutants:
            raise UserError(f"{self.name} has nothing to mutate: no operator, number or call; name the function that "
                            f"computes the gradient")
        return [self.candidate(mutant) for mutant in mutants]

    def candidate(self, mutant: Mutant) -> Candidate:
        definition: Any = ast.parse(mutant.code).body[0]
        comparable = can_be_watched(self.function) and ast.dump(definition.args) == self.signature
        compare = partial(Comparison, self.function, self.original, mutant.code) if comparable else None
        return Candidate(mutant.where, mutant.change, partial(plant, self.function, mutant.code),
                         self.unchanged(mutant.code), compare)

    def unchanged(self, code: str) -> bool:
        try:
            return same_code(self.function.__code__, rebuilt(self.function, code).__code__)
        except Exception:                               # it cannot be defined: its own process will say so
            return False


def found(name: str) -> Any:
    """What the name means in the process of the tests.  Raises UserError."""
    where, colon, path = name.rpartition(":")
    require_whole(name, path.replace(".<locals>", ""))
    if where.endswith(".py") and Path(where).is_file():
        modules = [module for module in [*sys.modules.values()] if is_of(module, Path(where))]
        if not modules:
            raise UserError(f"the tests do not import {where}, so no bug in it can be noticed; name a module that they "
                            f"import")
        where = modules[0].__name__
    return named.found_in(f"{where}{colon}{path}")[1]


def require_whole(name: str, path: str) -> None:
    """Raise UserError if the path leads into a function: what it defines is there only while it runs."""
    outer, _, inner = path.rpartition(".")
    if not outer:
        return
    within = f"{name.rpartition(':')[0]}:{outer}"
    thing = found(within)
    if isinstance(thing, types.FunctionType) and not hasattr(thing, inner):
        raise UserError(f"{inner} is made inside {outer} at each call; name {within}, whose bugs are also in {inner}")


def is_of(module: Any, path: Path) -> bool:
    """Was the module read from this file?"""
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and os.path.exists(file) and os.path.samefile(file, path)
