"""Check hand-written gradients: of any function, and of the registered ops.

    >>> import numpy as np
    >>> from pyllama.testing import gradcheck
    >>> def square(x):
    ...     return x * x, lambda dy: 2 * x * dy
    >>> bool(gradcheck(square, [np.array([1.0, -2.0, 3.0])]))
    True

Importing this package is cheap: each name is imported when it is first used.
"""
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllama.testing.foreign import c_function
    from pyllama.testing.function import gradcheck
    from pyllama.testing.ops import check
    from pyllama.testing.partials import check_partials
    from pyllama.testing.problems import Problem, between, problem
    from pyllama.testing.report import GradcheckError, Report
    from pyllama.testing.second import check_grads, gradgradcheck

_HOMES = {                                  # name -> the module it comes from
    "GradcheckError": "report",
    "Problem": "problems",
    "Report": "report",
    "between": "problems",
    "c_function": "foreign",
    "check": "ops",
    "check_grads": "second",
    "check_partials": "partials",
    "gradcheck": "function",
    "gradgradcheck": "second",
    "problem": "problems",
}

__all__ = ["GradcheckError", "Problem", "Report", "between", "c_function", "check", "check_grads", "check_partials",
           "gradcheck", "gradgradcheck", "problem"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'pyllama.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pyllama.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
