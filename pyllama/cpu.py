"""Imported where the compiled module of this name (cpu.pyx) was not built: Python prefers that one."""
from typing import Any


def __getattr__(name: str) -> Any: ...          # what type checkers see of the compiled module


raise ImportError("the C kernels are not built, so NumPy runs everything; install a C compiler and Python's headers, "
                  "then install pyllama from its source again (pip install -v shows what the compiler said)")
