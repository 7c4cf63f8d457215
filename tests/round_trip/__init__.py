"""Runs of pyllama, read by transformers, written by it, and read by pyllama again: make check-hf."""
