"""Weights and tokenizers in other programs' files."""
