"""Models and GGUF files: small ones, and others byte by byte, so that a test can write what no program would."""
import struct

import numpy as np

from pyllama import params, pretrained
from pyllama.formats import gguf, gguf_llama
from pyllama.models import llama
from pyllama.models.llama_config import LlamaConfig

IDS = np.array([[1, 5, 2, 9, 0, 3, 7]])


def text(content):
    """A string."""
    encoded = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def key(name, kind, payload):
    """A key with a value of a type by its number."""
    return text(name) + struct.pack("<I", kind) + payload


def info(name, shape, kind=0, offset=0):
    """A tensor's entry; the shape in the order of the file."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(keys=(), infos=(), data=b"", version=3, counts=None, alignment=32):
    """A whole file."""
    content = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(infos), len(keys)))) + b"".join([*keys, *infos])
    return content.ljust(-(-len(content) // alignment) * alignment, b"\0") + data


# Small models

def config(kind=LlamaConfig, **changes):
    return kind(**dict(vocab_size=11, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, bos_token_id=1,
                       eos_token_id=2) | changes)


def model_of(c, dtype="float32"):
    """A model, every number different and in float32."""
    tree, rng = llama.init(c, 0, dtype), np.random.default_rng(1)
    return pretrained.Model(c, params.rebuild(tree, (rng.normal(0, 0.3, a.shape).astype(np.float32).astype(dtype)
                                                     for _, a in params.leaves(tree))))


def assert_same_scores(model, other, tolerance=1e-12):
    """The rows of a head may be in another order, so sums of 16 numbers are rounded otherwise: 1e-12 of the largest."""
    z, expected = other.logits(IDS)[0], model.logits(IDS)[0]
    np.testing.assert_allclose(z, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def changed(tmp_path, change, c=None):
    """The file of a small model, after a change to its metadata and tensors."""
    c = c or config()
    metadata, tensors, _ = gguf_llama.written(c, model_of(c).params)
    change(metadata, tensors)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"".join(gguf.to_gguf(metadata, tensors)))
    return path
