"""Read and write the files of llama2.c: a model is one .bin file, its tokenizer is another.

Both are little-endian.  A model file is a header followed by its tensors in float32.  Tensors that every layer has are
stacked: [L ...].  There are two headers:

    legacy      seven int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len.  If vocab_size is
                negative, the output projection is the last tensor; otherwise it is the embedding.
    version 1   "ak42", the version, the same seven numbers, one byte (1 if the output projection is the embedding),
                zeros up to byte 256

Rotary pairs are adjacent in these files (Meta's layout).  read() keeps that layout and sets rope_interleaved;
to_halves() converts it to Hugging Face's.

    config, parameters = llama2c.read("stories15M.bin")
    tokenizer = llama2c.read_tokenizer("tokenizer.bin")

Source: github.com/karpathy/llama2.c, export.py, run.c and tokenizer.py.
"""
import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, processors

from pyllama import params
from pyllama.errors import UserError
from pyllama.files import replacing
from pyllama.models import llama
from pyllama.models.llama import LlamaConfig
from pyllama.rotary import frequencies
from pyllama.text import sentencepiece
from pyllama.text.tokenizer import Tokenizer

MAGIC, START, START_V1 = 0x616b3432, 28, 256
SPECIAL = ("<unk>", "<s>", "</s>")                  # ids 0, 1, 2; the pieces follow


class Header(NamedTuple):
    """The seven numbers of a header, under llama2.c's names."""
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int


# The model

def read(path: str | Path) -> tuple[LlamaConfig, dict]:
    """Read a model: its configuration and its parameters, float32.  The file may be legacy or version 1.

    Raises UserError if the file cannot be read, is not a llama2.c model, is quantized (version 2), or has another
    length than its header implies.
    """
    data = _content(path)
    h, tied, version, start = _header(data[:START_V1].tobytes(), path)
    if min(h) < 1 or h.dim % h.n_heads or h.n_heads % h.n_kv_heads or h.dim // h.n_heads % 2:
        raise UserError(f"{path} is not a llama2.c model: its header would mean a width of {h.dim} and "
                        f"{h.n_heads} heads; give the folder of a model, or a .bin file written by llama2.c's "
                        f"export.py")
    # As in run.c, <s> also ends a text: the model was trained on texts in a row, each of which begins with it.
    c = LlamaConfig(vocab_size=h.vocab_size, hidden_size=h.dim, intermediate_size=h.hidden_dim,
                    num_hidden_layers=h.n_layers, num_attention_heads=h.n_heads, num_key_value_heads=h.n_kv_heads,
                    max_position_embeddings=h.seq_len, rms_norm_eps=1e-5, rope_interleaved=True,
                    tie_word_embeddings=tied, bos_token_id=1, eos_token_id=[1, 2])
    order = _tensors(c, version)
    expected = start + 4 * sum(math.prod(shape) for _, shape in order)
    if data.size != expected:
        raise UserError(f"{path} has {data.size:,} bytes, but its header, {h}, implies {expected:,}; "
                        f"it is truncated or not a llama2.c model; fetch it again")
    numbers = data[start:].view("<f4")
    tensors: dict[str, np.ndarray] = {}
    for name, shape in order:
        tensor, numbers = numbers[:math.prod(shape)].reshape(shape), numbers[math.prod(shape):]
        tensors.update(zip(_leaves(name, c), tensor if "*" in name else [tensor], strict=True))
    # A model with as many layers and the smallest width has the same tree, in init's order, and costs nothing.
    tree = llama.init(replace(c, vocab_size=1, hidden_size=2, intermediate_size=1, num_attention_heads=1,
                              num_key_value_heads=1))
    return c, params.rebuild(tree, (tensors[name] for name, _ in params.leaves(tree)))


def write(path: str | Path, config: LlamaConfig, parameters: dict) -> None:
    """Write a model as a legacy .bin file: in float32, with adjacent rotary pairs.

    The file appears under its name only when it is complete.  Raises UserError if the format cannot represent the
    configuration.
    """
    c = config
    fixed = {"head_width": c.hidden_size / c.num_attention_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
             "rope_scaling": None, "sliding_window": None, "attention_bias": False, "mlp_bias": False,
             "biases": (False, False), "HEAD_NORMS": False, "share_layers": 1, "embedding_size": None,
             "is_uneven": False, "ranks_by_layer": None}
    for name, only in fixed.items():
        if getattr(c, name) != only:
            raise UserError(f"llama2.c's format requires {name} = {only}, but the model has {getattr(c, name)}; "
                            f"save it as Hugging Face files instead")
    if not c.rope_interleaved:
        parameters = _permute(parameters, c, to_pairs)
    angle = np.arange(c.max_position_embeddings)[:, None] * frequencies(c.head_width // 2, c.rope_theta, None)
    stored = dict(params.leaves(parameters)) | {"cos.weight": np.cos(angle), "sin.weight": np.sin(angle)}
    h = Header(c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.groups,
               c.vocab_size if c.tie_word_embeddings else -c.vocab_size, c.max_position_embeddings)
    with replacing(path) as file:
        file.write(struct.pack("<7i", *h))
        for name, _ in _tensors(c):
            for leaf in _leaves(name, c):
                file.write(np.ascontiguousarray(stored[leaf], "<f4").data)


def to_halves(parameters: dict, config: LlamaConfig) -> tuple[dict, LlamaConfig]:
    """Convert adjacent rotary pairs to Hugging Face's layout, where the two are half a head apart.

    In each head the rows of q_proj and of k_proj are permuted in the same way, so q·k and all logits stay the same.
    Returns the new parameters and configuration, or the same ones if they have that layout already.
    """
    if not config.rope_interleaved:
        return parameters, config
    return _permute(parameters, config, from_pairs), replace(config, rope_interleaved=False)


def from_pairs(w, heads):
    """Reorder the rows of each head from a_0 b_0 a_1 b_1 ... to a_0 a_1 ... b_0 b_1 ...

    w        [heads*K ...], a matrix or a bias

    >>> import numpy as np
    >>> from pyllama.formats.llama2c import from_pairs
    >>> from_pairs(np.array([0, 1, 2, 3]), heads=1)
    array([0, 2, 1, 3])
    """
    return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_pairs(w, heads):
    """The inverse of from_pairs."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _permute(parameters, c, rows):
    """The parameters, with q_proj and k_proj replaced by rows(w, heads)."""
    turned = ("q_proj", "k_proj", "q_proj.second", "k_proj.second")
    changed = ((rows(w, len(w) // c.head_width) if name.rpartition(".")[0].endswith(turned) else w)
               for name, w in params.leaves(parameters))
    return params.rebuild(parameters, changed)


def _header(head, path):
    """(the header, with a positive vocab_size; is the head tied?; the version; the byte at which the tensors start)"""
    if len(head) == START_V1 and struct.unpack_from("<I", head)[0] == MAGIC:
        version, *seven, tied = struct.unpack_from("<8iB", head, 4)
        if version != 1:
            raise UserError(f"{path} has llama2.c's version {version}, which is not supported; "
                            f"export it with --version 1")
        return Header(*seven), bool(tied), 1, START_V1
    if len(head) < START:
        raise UserError(f"{path} has {len(head)} bytes, but the header of a llama2.c model has {START}; "
                        f"it is truncated or not such a model; fetch it again")
    h = Header(*struct.unpack_from("<7i", head))
    return h._replace(vocab_size=abs(h.vocab_size)), h.vocab_size > 0, 0, START


def _tensors(c, version=0):
    """[(name, shape), ...] of the tensors in the order of the file; * stands for the layer, a stack's first axis."""
    L, D, F, V = c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.vocab_size
    KV, layer = c.groups * c.head_width, "model.layers.*"
    embed, norm = ("model.embed_tokens", (V, D)), ("model.norm", (D,))
    norm1, norm2 = (f"{layer}.input_layernorm", (L, D)), (f"{layer}.post_attention_layernorm", (L, D))
    attention = [(f"{layer}.self_attn.q_proj", (L, D, D)), (f"{layer}.self_attn.k_proj", (L, KV, D)),
                 (f"{layer}.self_attn.v_proj", (L, KV, D)), (f"{layer}.self_attn.o_proj", (L, D, D))]
    mlp = [(f"{layer}.mlp.gate_proj", (L, F, D)), (f"{layer}.mlp.down_proj", (L, D, F)),
           (f"{layer}.mlp.up_proj", (L, F, D))]
    head = [] if c.tie_word_embeddings else [("lm_head", (V, D))]
    if version == 1:
        return [norm1, norm2, norm, embed, *attention, *mlp, *head]
    turns = [(name, (c.max_position_embeddings, c.head_width // 2)) for name in ("cos", "sin")]    # run.c skips them
    return [embed, norm1, *attention, norm2, *mlp, norm, *turns, *head]


def _leaves(name, c):
    """The names of the leaves that one tensor of the file holds."""
    return [f"{name.replace('*', str(i))}.weight" for i in range(c.num_hidden_layers if "*" in name else 1)]


# The tokenizer

def read_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer: uint32 length of the longest piece, then for each piece float32 score, int32 length, UTF-8.

    The file describes SentencePiece's byte pairs: see sentencepiece.merges().  After the special tokens come the 256
    bytes, unless SentencePiece was trained without them (byte_fallback).

    Raises UserError if the file cannot be read or is not such a tokenizer.
    """
    wrong = f"{path} is not a llama2.c tokenizer, or is truncated: {{}}; give a .bin file written by its tokenizer.py"
    data = _content(path).tobytes()
    pieces: list[tuple[str, float]] = []
    try:
        longest, at = *struct.unpack_from("<I", data), 4
        while at < len(data):
            score, n = struct.unpack_from("<fi", data, at)
            if not 0 <= n <= min(longest, len(data) - at - 8):
                raise UserError(wrong.format(f"piece {len(pieces)} would have {n} bytes"))
            pieces.append((data[at + 8:at + 8 + n].decode(), score))
            at += 8 + n
    except (struct.error, UnicodeDecodeError) as error:
        raise UserError(wrong.format(error)) from None
    by_bytes = any(re.fullmatch("<0x[0-9A-F]{2}>", piece) for piece, _ in pieces)
    first = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))] if by_bytes else SPECIAL
    if [piece for piece, _ in pieces[len(SPECIAL):len(first)]] != [*first[len(SPECIAL):]]:
        raise UserError(wrong.format("ids 3 to 258 are not the 256 bytes"))
    scores = {piece.replace(" ", "▁"): score for piece, score in pieces[len(first):]}
    if len(scores) < len(pieces) - len(first) or not scores:
        raise UserError(wrong.format("a piece occurs twice, or there is none"))
    return Tokenizer(_sentencepiece({piece: i for i, piece in enumerate([*first, *scores])},
                                    sentencepiece.merges(scores.items()), by_bytes))


def _sentencepiece(vocabulary, merges, by_bytes):
    """The pipeline of LLaMA's tokenizer.json: a space before the text, spaces as ▁, unknown characters as bytes.

    by_bytes    False: unknown characters are <unk>, because the vocabulary has no bytes
    """
    rust = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=SPECIAL[0], fuse_unk=not by_bytes,
                                           byte_fallback=by_bytes))
    rust.add_special_tokens(list(SPECIAL))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return rust


def _content(path):
    """The file's bytes, uint8."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a .bin file of llama2.c") from None
