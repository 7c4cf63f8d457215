"""The GGUF files of bench/decode.py: models with random weights, in each storage format."""
import functools
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from bench.decode_sizes import SIZES, Size
from pyllama import params
from pyllama.models import llama
from pyllama.models.init import outlines
from pyllama.models.llama_config import LlamaConfig
from pyllama.pretrained import Model, load
from pyllama.quantization import EncodedArray
from pyllama.quantization.blocks import FORMATS as BLOCKS
from pyllama.quantization.blocks import row_bytes
from pyllama.quantization.encoded import encoded_tree
from pyllama.text.tokenizer import Tokenizer

FORMATS = ("f32", "f16", "q8_0", "q4_0")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
STD = 0.04                                              # with less, a tied model repeats its last token for ever
LEVELS = {"q8_0": 256, "q4_0": 16}                     # integers -n/2 ... n/2 - 1


def write(path: Path, size: str, form: str):
    """Write a model of this size and format."""
    config = configuration(SIZES[size])
    Model(config, parameters(config, form), vocabulary(config.vocab_size)).save(path)


def write_trained(path: Path, source: Path, form: str):
    """Write a model that pyllama.load reads, in this format."""
    model = load(source)
    tree = model.params if form == "f32" else encoded_tree(model.params, form, model.config)
    replace(model, params=tree).save(path)


def configuration(s: Size):
    return LlamaConfig(vocab_size=s.V, hidden_size=s.D, intermediate_size=s.F, num_hidden_layers=s.L,
                       num_attention_heads=s.H, num_key_value_heads=s.G, rms_norm_eps=1e-5, tie_word_embeddings=s.tied,
                       rope_interleaved=True)           # as in files of llama.cpp: no row has to be moved


def vocabulary(size):
    """Byte-level pairs of bytes: a tokenizer that every engine accepts."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(itertools.islice(itertools.product(bytes_, bytes_), size - len(bytes_) - len(SPECIAL)))
    pieces = [*SPECIAL.values(), *bytes_, *map("".join, merges)]
    rust = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rust.add_special_tokens([*SPECIAL.values()])
    return Tokenizer(rust, SPECIAL)


def parameters(config, form):
    """Random parameters.  Matrices of one shape share their memory: only a file needs them all."""
    matrix = functools.cache(functools.partial(random_matrix, form))
    with outlines(10 ** 6):
        tree = llama.init(config)
    return params.rebuild(tree, (matrix(*leaf.shape) if leaf.ndim == 2 else np.ones(leaf.shape, np.float32)
                                 for _, leaf in params.leaves(tree)))


def random_matrix(form, rows, columns):
    """Numbers with the standard deviation STD: normal ones, or random blocks, which take no time to encode."""
    rng = np.random.default_rng(rows * columns)
    if form in LEVELS:
        blocks = random_blocks(rng, form, rows * columns // BLOCKS[form].numbers)
        return EncodedArray(form, blocks.reshape(rows, -1), (rows, columns))
    x = STD * rng.standard_normal((rows, columns), np.float32)
    return x if form == "f32" else EncodedArray.of(x, form)


def random_blocks(rng, form, count):
    """uint8 blocks of random integers, as encoding gives them: no -128 in q8_0, scales of either sign in q4_0."""
    blocks = rng.integers(256, size=(count, BLOCKS[form].bytes), dtype=np.uint8)
    if form == "q8_0":
        blocks[blocks == 128] = 0
    scale = STD / math.sqrt((LEVELS[form] ** 2 + 2) / 12) * rng.choice([1 if form == "q8_0" else -1, 1], (count, 1))
    blocks[:, :2] = scale.astype("<f2").view(np.uint8)
    return blocks


def stored_bytes(weights, form):
    return 4 * weights if form == "f32" else row_bytes(weights, form)


def token_bytes(size, form):
    """The bytes of the weights that a token needs."""
    return stored_bytes(SIZES[size].weights, form)
