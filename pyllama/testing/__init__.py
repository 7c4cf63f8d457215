"""Tools for testing gradients: problems drawn from shape lines, and exact derivatives to hold backward against."""
from pyllama.testing.gradient import Finding, check, complex_step
from pyllama.testing.problems import Problem, problem

__all__ = ["Finding", "Problem", "check", "complex_step", "problem"]
