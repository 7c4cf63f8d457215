"""llama2.c's files: a model as one .bin, its tokenizer as another.

Both are little-endian.  A model is a header and then nothing but float32, tensor after tensor; what every layer has
is stacked, [L ...].

    legacy      dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len as int32.  A negative vocab_size
                says that the output projection follows as the last tensor; else it is the embedding.
    version 1   "ak42", the version, the same seven, one byte (is the output projection the embedding?), zeros to 256.

Rotary pairs are neighbours here (Meta's order): read() sets rope_interleaved and permutes nothing, to_halves() makes
them Hugging Face's.  Source: github.com/karpathy/llama2.c, export.py, run.c and tokenizer.py.
"""
import math
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
from pyllama.text.tokenizer import Tokenizer

MAGIC, START, START_V1 = 0x616b3432, 28, 256
SPECIAL = ("<unk>", "<s>", "</s>")                  # ids 0, 1, 2; then come the 256 bytes, then the pieces
FIRST_PIECE = len(SPECIAL) + 256


class Header(NamedTuple):
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int


# The model

def read(path: str | Path) -> tuple[LlamaConfig, dict]:
    """The config and the parameters, float32, of a .bin, legacy or version 1.

    Raises UserError if it is no such file, is quantised (version 2), or is not as long as its header says.
    """
    data = _content(path)
    h, tied, version, start = _header(data[:START_V1].tobytes(), path)
    if min(h) < 1 or h.dim % h.n_heads or h.n_heads % h.n_kv_heads or h.dim // h.n_heads % 2:
        raise UserError(f"{path} is not a llama2.c model: its first bytes would mean a width of {h.dim} and "
                        f"{h.n_heads} heads; give a .bin of export.py")
    # run.c stops at <s>, too: a model trained on texts that each begin with it ends one by beginning the next.
    c = LlamaConfig(vocab_size=h.vocab_size, hidden_size=h.dim, intermediate_size=h.hidden_dim,
                    num_hidden_layers=h.n_layers, num_attention_heads=h.n_heads, num_key_value_heads=h.n_kv_heads,
                    max_position_embeddings=h.seq_len, rope_interleaved=True, tie_word_embeddings=tied,
                    bos_token_id=1, eos_token_id=[1, 2])
    order = _tensors(c, version)
    expected = start + 4 * sum(math.prod(shape) for _, shape in order)
    if data.size != expected:
        raise UserError(f"{path} has {data.size:,} bytes where {h} asks for {expected:,}; "
                        f"it is cut short or not a llama2.c model, fetch it again")
    numbers = data[start:].view("<f4")
    found: dict[str, np.ndarray] = {}
    for name, shape in order:
        tensor, numbers = numbers[:math.prod(shape)].reshape(shape), numbers[math.prod(shape):]
        found.update(zip(_leaves(name, c), tensor if "*" in name else [tensor], strict=True))
    # A model of as many layers but no width has the same tree, in init's order, and costs nothing.
    tree = llama.init(replace(c, vocab_size=1, hidden_size=2, intermediate_size=1, num_attention_heads=1,
                              num_key_value_heads=1))
    return c, params.rebuild(tree, (found[name] for name, _ in params.leaves(tree)))


def write(path: str | Path, config: LlamaConfig, parameters: dict) -> None:
    """Write the legacy .bin, whole or not at all.  The parameters become float32, their rotary pairs neighbours.

    Raises UserError if the config says what the format cannot.
    """
    c = config
    fixed = {"head_width": c.hidden_size / c.num_attention_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
             "rope_scaling": None, "sliding_window": None, "attention_bias": False, "mlp_bias": False}
    for name, only in fixed.items():
        if getattr(c, name) != only:
            raise UserError(f"llama2.c's format knows only {name} = {only}, the model has {getattr(c, name)}; "
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
    """The same function with the rotary pairs as Hugging Face's files have them: half a head apart, not neighbours.

    In each head the rows of q_proj and k_proj change places alike, so that q·k, and with it every logit, is the same.
    """
    if not config.rope_interleaved:
        return parameters, config
    return _permute(parameters, config, from_pairs), replace(config, rope_interleaved=False)


def from_pairs(w, heads):
    """In each head, rows a_0 b_0 a_1 b_1 ... become a_0 a_1 ... b_0 b_1 ...  w[heads*K ...] is a matrix or a bias."""
    return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_pairs(w, heads):
    """The inverse of from_pairs."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _permute(parameters, c, rows):
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.groups}
    changed = ((rows(w, heads[owner]) if (owner := name.split(".")[-2]) in heads else w)
               for name, w in params.leaves(parameters))
    return params.rebuild(parameters, changed)


def _header(head, path):
    """(the seven numbers, vocab_size positive; is the head tied?; the version; where the tensors start)"""
    if len(head) == START_V1 and struct.unpack_from("<I", head)[0] == MAGIC:
        version, *seven, tied = struct.unpack_from("<8iB", head, 4)
        if version != 1:
            raise UserError(f"{path} is llama2.c's version {version}, of which only the float32 ones are read; "
                            f"export it with --version 1")
        return Header(*seven), bool(tied), 1, START_V1
    if len(head) < START:
        raise UserError(f"{path} has {len(head)} bytes, the header of a llama2.c model alone has {START}; "
                        f"it is cut short or not such a model, fetch it again")
    h = Header(*struct.unpack_from("<7i", head))
    return h._replace(vocab_size=abs(h.vocab_size)), h.vocab_size > 0, 0, START


def _tensors(c, version=0):
    """(name, shape) of each tensor in the file's order; * is the layer, the first axis of a stack."""
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
    turns = [(name, (c.max_position_embeddings, c.head_width // 2)) for name in ("cos", "sin")]    # no longer read
    return [embed, norm1, *attention, norm2, *mlp, norm, *turns, *head]


def _leaves(name, c):
    """The names in the tree of what one tensor of the file holds."""
    return [f"{name.replace('*', str(i))}.weight" for i in range(c.num_hidden_layers if "*" in name else 1)]


# The tokenizer

def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a .bin: uint32 longest piece, then of each piece float32 score, int32 length, UTF-8.

    This is SentencePiece's BPE: join the two neighbours whose union has the highest score, the leftmost of equals,
    until no union is a piece.  Hugging Face's joins the pair that comes first in a list, so each way to cut a piece
    in two pieces is listed, in the order of the scores.  The two agree where no two pieces have the same score, as
    in what SentencePiece trains.  Raises UserError if the file is no such tokenizer.
    """
    wrong = f"{path} is not a llama2.c tokenizer, or cut short: {{}}; give a .bin of its tokenizer.py"
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
    known = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    if [piece for piece, _ in pieces[len(SPECIAL):FIRST_PIECE]] != known[len(SPECIAL):]:
        raise UserError(wrong.format("ids 3 to 258 are not the 256 bytes"))
    scores = {piece.replace(" ", "▁"): score for piece, score in pieces[FIRST_PIECE:]}
    if len(scores) < len(pieces) - FIRST_PIECE:
        raise UserError(wrong.format("a piece occurs twice"))
    merges = [(piece[:i], piece[i:]) for piece in sorted(scores, key=scores.__getitem__, reverse=True)
              for i in range(1, len(piece)) if piece[:i] in scores and piece[i:] in scores]
    return Tokenizer(_sentencepiece({piece: i for i, piece in enumerate([*known, *scores])}, merges))


def _sentencepiece(vocabulary, merges):
    """As LLaMA's tokenizer.json has it: a space before the text, spaces as ▁, unknown characters as bytes."""
    rust = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=SPECIAL[0], byte_fallback=True))
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
        raise UserError(f"cannot read {path}: {error.strerror}; give a .bin of llama2.c") from None
