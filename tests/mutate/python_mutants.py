"""The mutants of an op's Python functions: those of its module, and those of its helpers in lower modules."""
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from pyllama import rotary, shapes
from pyllama.testing.mutation import planting
from pyllama.testing.mutation.mutants import Mutant, mutants_in

ROOT = Path(__file__).parents[2]
# op: a module below the ops, and its functions that do a part of the op's work
HELPERS = {"embedding": (shapes, ["require_below"]), "rope": (rotary, ["items", "frequencies", "make", "tables"])}


def mutants_of(op) -> Iterator[Mutant]:
    """The mutants of every function in the op's module, and of its helpers."""
    for module in modules_of(op.name):
        path = Path(module.__file__)
        helper, names = HELPERS.get(op.name, (None, []))
        for definition in ast.parse(path.read_text()).body:
            if isinstance(definition, ast.FunctionDef) and (module is not helper or definition.name in names):
                yield from mutants_in(definition, op.name, str(path.relative_to(ROOT)))


def modules_of(name: str) -> list:
    return [sys.modules[f"pyllama.ops.{name}"], *HELPERS.get(name, ())[:1]]


def plant(mutant: Mutant) -> None:
    module = next(module for module in modules_of(mutant.unit) if hasattr(module, mutant.function))
    planting.plant(getattr(module, mutant.function), mutant.code)
