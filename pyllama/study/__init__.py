"""Derivations that are executed: every line of mathematics in a docstring is run, and proved where SymPy can."""
