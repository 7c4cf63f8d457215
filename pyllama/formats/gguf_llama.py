"""LLaMA in a GGUF file: llama.cpp's names of its tensors, its metadata, and the order of the rows of q and k.

In these files the two rows of a rotary pair are adjacent (Meta's layout).  read() keeps them where they are mapped, and
sets rope_interleaved; written() brings other models to that order.

Source: github.com/ggml-org/llama.cpp, src/llama-arch.cpp and convert_hf_to_gguf.py.
"""
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from pyllama import params
from pyllama.device import host
from pyllama.errors import UserError, with_article
from pyllama.formats import gguf_rope
from pyllama.formats.gguf import Tensor
from pyllama.formats.gguf_metadata import NEEDED, Metadata
from pyllama.formats.llama2c import to_pairs
from pyllama.models import llama
from pyllama.models.llama_config import LlamaConfig, MistralConfig
from pyllama.quantization import EncodedArray
from pyllama.quantization.blocks import decode
from pyllama.rng import undrawn

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OF_LAYER = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
FACTORS = "rope_freqs.weight"                               # see gguf_rope.py

# Keys that change the mathematics, with the value that a LLaMA has.
ONLY: dict[str, Any] = {
    "expert_count": 0, "attention.causal": True, "use_parallel_residual": False, "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0, "attention.scale": 0, "attention.sliding_window": 0, "logit_scale": 0,
    "residual_scale": 0, "embedding_scale": 0}
BEGIN, PAD = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.padding_token_id"
ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))       # of a text, turn, message
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}         # by the type of most matrices
HEADS = {"q_proj": "num_attention_heads", "k_proj": "groups"}               # the owners of rotary pairs


# Reading

def read(metadata: Metadata, stored: dict[str, Tensor], dtype: str = "float32"
         ) -> tuple[LlamaConfig, dict, tuple[str, ...]]:
    """(configuration, parameters, notes) of the LLaMA in a file.

    Numbers in float32 are arrays on the mapped file, and other matrices EncodedArrays on it.  If dtype is float64,
    all are decoded.

    Raises UserError if it is another model, has options that are not supported, or lacks a tensor.
    """
    check_supported(metadata)
    tensors = {ours(name): tensor for name, tensor in stored.items()}
    factors = tensors.pop(FACTORS, None)
    c = configuration(metadata, tensors, None if factors is None else vector(factors))
    # A model with as many layers and the smallest width has the same tree, and costs nothing.
    smallest = replace(c, vocab_size=1, hidden_size=2, intermediate_size=1, num_attention_heads=1,
                       num_key_value_heads=1, head_dim=None)
    with undrawn():
        tree = llama.init(smallest)
    names = [name for name, _ in params.leaves(tree)]
    shapes = dict(zip(names, (shape_of(name, c) for name in names), strict=True))
    for name, shape in shapes.items():
        if name not in tensors and not name.endswith(".bias"):
            raise UserError(f"{metadata.path} lacks the tensor {theirs(name)}; fetch it again")
        if name in tensors and tensors[name].shape != shape:
            raise UserError(f"{metadata.path} has {theirs(name)} of shape {list(tensors[name].shape)}, but its "
                            f"metadata says {list(shape)}; convert the model again")
    unused = sorted(name for name in stored if ours(name) not in shapes and name != FACTORS)
    notes = (f"not used: {', '.join(unused[:8])}{', ...' if len(unused) > 8 else ''}",) if unused else ()
    return c, params.rebuild(tree, (leaf(tensors.get(name), shapes[name], dtype) for name in names)), notes


def check_supported(metadata: Metadata) -> None:
    """Raise UserError if the model is not a LLaMA, or one with options that ours lacks."""
    path, kind = metadata.path, metadata.text("general.architecture")
    if kind != "llama":
        raise UserError(f"{path} has a model of the architecture {kind!r}, but of GGUF files only llama is read, which "
                        f"mistral is, too; give the Hugging Face folder from which it was converted")
    if metadata.whole("split.count", 1) > 1:
        raise UserError(f"{path} is one of {metadata.whole('split.count')} parts of a model; join them with "
                        f"`llama-gguf-split --merge`")
    for name, only in ONLY.items():
        value = metadata.value(f"llama.{name}", only)
        if isinstance(value, np.ndarray) or value != only:
            raise UserError(f"{path} has llama.{name} = {value!s:.60}, which is not supported; give another model")


def configuration(metadata: Metadata, tensors: dict[str, Tensor], factors: np.ndarray | None) -> LlamaConfig:
    """The configuration, from the metadata and from which tensors there are."""
    def whole(name: str, default: Any = NEEDED) -> int:
        return metadata.whole(f"llama.{name}", default)

    table = tensors.get("model.embed_tokens.weight")
    if table is None or len(table.shape) != 2:
        raise UserError(f"{metadata.path} lacks the matrix token_embd.weight; fetch it again")
    V, D, H, L = table.shape[0], whole("embedding_length"), whole("attention.head_count"), whole("block_count")
    if L * len(OF_LAYER) > len(tensors):
        raise UserError(f"{metadata.path} has {len(tensors)} tensors, too few for {L} layers; fetch it again")
    K = whole("attention.key_length", NEEDED if D % H else D // H)
    for name in ("attention.value_length", "rope.dimension_count"):
        if whole(name, K) != K:
            raise UserError(f"{metadata.path} has llama.{name} = {whole(name)}, but keys of {K} numbers, which is not "
                            f"supported; give another model")
    base = metadata.number("llama.rope.freq_base", 10000.0)
    ends = [end for key in ENDS if (end := metadata.id(key, V)) is not None]
    biased = {name.split(".")[-3] for name in tensors if name.endswith("_proj.bias")}
    return LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=whole("feed_forward_length"), num_hidden_layers=L,
        num_attention_heads=H, num_key_value_heads=whole("attention.head_count_kv", H),
        head_dim=None if K * H == D else K, max_position_embeddings=whole("context_length"),
        rms_norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon"), rope_theta=base,
        rope_scaling=gguf_rope.read(metadata, factors, K // 2, base), rope_interleaved=True,
        attention_bias="self_attn" in biased, mlp_bias="mlp" in biased,
        tie_word_embeddings="lm_head.weight" not in tensors, bos_token_id=metadata.id(BEGIN, V),
        pad_token_id=metadata.id(PAD, V), eos_token_id=[*dict.fromkeys(ends)] if len({*ends}) > 1 else (*ends, None)[0])


def leaf(tensor: Tensor | None, shape: tuple[int, ...], dtype: str) -> np.ndarray | EncodedArray:
    """A tensor as a parameter.  A bias that the file lacks is zero."""
    if tensor is None:
        return np.zeros(shape, dtype)
    if tensor.kind == "F32":
        return tensor.data.view("<f4").reshape(shape).astype(dtype, copy=False)
    if len(shape) == 1:
        return vector(tensor).astype(dtype, copy=False)
    rows, columns = shape
    matrix = EncodedArray(tensor.kind.lower(), tensor.data.reshape(rows, -1), (rows, columns))
    return matrix if dtype == "float32" else matrix.decoded(dtype)


def vector(tensor: Tensor) -> np.ndarray:
    """The numbers of a vector, float32."""
    if tensor.kind == "F32":
        return tensor.data.view("<f4").astype(np.float32, copy=False)
    return decode(tensor.data[None], tensor.kind.lower())[0]


def shape_of(name: str, c: LlamaConfig) -> tuple[int, ...]:
    """The shape of a parameter."""
    D, F, Q, KV = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_width, c.groups * c.head_width
    owner, kind = name.split(".")[-2:]
    shape: tuple[int, ...] = {"embed_tokens": (c.vocab_size, D), "lm_head": (c.vocab_size, D), "q_proj": (Q, D),
                              "k_proj": (KV, D), "v_proj": (KV, D), "o_proj": (D, Q), "gate_proj": (F, D),
                              "up_proj": (F, D), "down_proj": (D, F)}.get(owner, (D,))
    return shape if kind == "weight" else shape[:1]


# Names

def ours(name: str) -> str:
    """The name of a parameter, of a tensor in a file; one that is not known stays as it is.

    >>> from pyllama.formats.gguf_llama import ours, theirs
    >>> ours("blk.3.attn_q.weight"), theirs("model.layers.3.mlp.up_proj.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'blk.3.ffn_up.weight')
    """
    owner, _, kind = name.rpartition(".")
    if owner in WHOLE:
        return f"{WHOLE[owner]}.{kind}"
    first, _, rest = owner.partition(".")
    layer, _, part = rest.partition(".")
    return f"model.layers.{layer}.{OF_LAYER[part]}.{kind}" if first == "blk" and part in OF_LAYER else name


def theirs(name: str) -> str:
    """The inverse of ours()."""
    owner, _, kind = name.rpartition(".")
    whole, of_layer = ({b: a for a, b in names.items()} for names in (WHOLE, OF_LAYER))
    if owner in whole:
        return f"{whole[owner]}.{kind}"
    layer, _, part = owner.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{of_layer[part]}.{kind}"


# Writing

def written(c: LlamaConfig, parameters: dict, end: int | None = None
            ) -> tuple[dict[str, Any], dict[str, Tensor], tuple[str, ...]]:
    """(metadata, tensors, notes) of a file with this model, without its tokenizer.

    end     the tokenizer's end token: if the model has several, the file names this one first

    Arrays become float32; EncodedArrays stay as they are.  Raises UserError for a model that llama.cpp does not compute
    as its architecture llama.
    """
    if type(c) not in (LlamaConfig, MistralConfig) or c.head != "lm":
        raise UserError(f"GGUF files are written of llama and mistral with the head lm, but the model is "
                        f"{with_article(c.TYPE)} with the head {c.head!r}; save it as a folder")
    if c.shares:
        raise UserError("a GGUF file has weights for every layer and one table, but the model's are shared; save its "
                        "expanded()")
    if c.is_uneven:
        raise UserError("a GGUF file has equally many heads and channels in every layer, but this model was pruned to "
                        "different ones; set padded, or prune with even")
    rope, factors = gguf_rope.written(c)
    tensors = {theirs(name): stored(name, w, c) for name, w in params.leaves(parameters)}
    if factors is not None:
        tensors[FACTORS] = of_floats(factors)
    context, notes = c.max_position_embeddings, list[str]()
    if c.sliding_window is not None and c.sliding_window < context:
        context = c.sliding_window
        notes.append(f"llama.cpp has no sliding window for this model, so the file says that its context is the window "
                     f"of {context} tokens")
    kinds = Counter({kind: 0 for kind in FILE_TYPES})
    kinds.update(tensor.kind for tensor in tensors.values() if len(tensor.shape) == 2)
    most, _ = kinds.most_common(1)[0]
    sizes = {"context_length": context, "embedding_length": c.hidden_size, "block_count": c.num_hidden_layers,
             "feed_forward_length": c.intermediate_size, "attention.head_count": c.num_attention_heads,
             "attention.head_count_kv": c.groups, "attention.key_length": c.head_width,
             "attention.value_length": c.head_width, "vocab_size": c.vocab_size}
    ends = sorted(c.eos_token_id if isinstance(c.eos_token_id, list) else [c.eos_token_id], key=lambda i: i != end)
    if len(ends) > len(ENDS):
        notes.append(f"of the {len(ends)} end tokens the file has the first {len(ENDS)}")
    ids = {BEGIN: c.bos_token_id, PAD: c.pad_token_id, **dict(zip(ENDS, ends, strict=False))}
    return {"general.architecture": "llama", "general.file_type": np.uint32(FILE_TYPES[most]),
            "general.quantization_version": np.uint32(2),
            **{f"llama.{name}": np.uint32(size) for name, size in sizes.items()},
            "llama.attention.layer_norm_rms_epsilon": np.float32(c.rms_norm_eps), **rope,
            **{key: np.uint32(i) for key, i in ids.items() if i is not None}}, tensors, tuple(notes)


def stored(name: str, w: Any, c: LlamaConfig) -> Tensor:
    """A parameter as a tensor of a file, the rows of q_proj and k_proj in the order of the file."""
    heads = HEADS.get(name.split(".")[-2])
    moved = heads is not None and not c.rope_interleaved
    if isinstance(w, EncodedArray):
        data = to_pairs(w.data, getattr(c, heads)) if moved and heads else w.data
        return Tensor(w.kind.upper(), w.shape, data.reshape(-1))
    w = host(w)
    return of_floats(to_pairs(w, getattr(c, heads)) if moved and heads else w)


def of_floats(w: np.ndarray) -> Tensor:
    """An array as a tensor of float32."""
    w = w if w.dtype == np.float32 else params.cast(w, np.float32)
    return Tensor("F32", w.shape, np.ascontiguousarray(w, "<f4").reshape(-1).view(np.uint8))
