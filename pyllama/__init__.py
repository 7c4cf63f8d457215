"""pyllama: read, check and train LLaMA.  Every forward and backward pass is written by hand in NumPy, next to its
derivation.

    load, create                 a model from files, or from scratch
    train, resume, finetune      train a model; generators that yield a record for each step
    generate, predict            continue text, answer the inputs of a task
    ops                          the differentiable functions, each `y, back = op(*inputs)`
    check_gradient               compare a backward pass with the exact derivative
    Settings, UserError          how to train; errors that the caller can fix

Importing pyllama is cheap: each name is imported when it is first used.
"""
import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllama import ops
    from pyllama.api import create, finetune, generate, load, predict, resume, train
    from pyllama.errors import UserError
    from pyllama.testing.function import gradcheck as check_gradient
    from pyllama.training.loop import Settings

__version__ = "0.1.0"
__all__ = ["Settings", "UserError", "check_gradient", "create", "finetune", "generate", "load", "ops", "predict",
           "resume", "train"]

# load is in api, too, which imports the tasks and the training: generation does without.
_HOMES = {"Settings": "training.loop", "UserError": "errors", "check_gradient": "testing:gradcheck",
          "load": "pretrained"}


def __getattr__(name):
    if name in __all__ and name != "ops":
        home, _, original = _HOMES.get(name, "api").partition(":")
        value = getattr(importlib.import_module(f"pyllama.{home}"), original or name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"pyllama.{name}"):
        return importlib.import_module(f"pyllama.{name}")               # pyllama.ops, pyllama.models, ...
    raise AttributeError(f"module 'pyllama' has no attribute {name!r}")


def __dir__():
    return [*__all__, "__version__"]
