"""Smaller models from trained ones: see pruning.py."""
