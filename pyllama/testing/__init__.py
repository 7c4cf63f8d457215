"""Check backward passes: random problems drawn from an op's shape line, and exact derivatives by a complex step.

    >>> from pyllama.ops import rms_norm
    >>> from pyllama.testing import check
    >>> check(rms_norm).error < 1e-11
    True
"""
from pyllama.testing.function import Agreement, check_gradient
from pyllama.testing.gradient import Finding, check, complex_step
from pyllama.testing.passes import WrongGradient
from pyllama.testing.problems import Problem, problem

__all__ = ["Agreement", "Finding", "Problem", "WrongGradient", "check", "check_gradient", "complex_step", "problem"]
