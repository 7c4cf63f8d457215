"""Tools for testing gradients: problems drawn from shape lines, and exact derivatives to compare backward with."""
from pyllama.testing.function import WrongGradient, check_gradient
from pyllama.testing.gradient import Finding, check, complex_step
from pyllama.testing.problems import Problem, problem

__all__ = ["Finding", "Problem", "WrongGradient", "check", "check_gradient", "complex_step", "problem"]
