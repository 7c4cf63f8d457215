"""Weights, tokenizers and word vectors in the file formats of other programs."""
