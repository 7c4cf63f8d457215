"""Weights in the storage formats of GGUF: encoded matrices as leaves of a tree of parameters, and calibration."""
from pyllama.quantization.encoded import EncodedArray, decoded_tree, encoded_tree, is_quantized, plain

__all__ = ["EncodedArray", "decoded_tree", "encoded_tree", "is_quantized", "plain"]
