"""The configurations of LLaMA and of the families that compute it with other options: Mistral, Qwen2 and Qwen3."""
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pyllama.errors import UserError, with_article
from pyllama.models.config import Config, Dimensions
from pyllama.models.factored import FactoredConfig
from pyllama.rotary import items

HEADS = {"lm": "ForCausalLM", "classification": "ForSequenceClassification"}


@dataclass(frozen=True)
class LlamaConfig(FactoredConfig):
    """The configuration of a LLaMA, under the names of Hugging Face's config.json and with its defaults.

    Raises UserError if a field is invalid.
    """

    TYPE = "llama"
    HEADS: ClassVar = {head: f"Llama{name}" for head, name in HEADS.items()}
    ALIASES: ClassVar = {"LlamaModel": "lm"}
    ONLY: ClassVar = {"hidden_act": "silu", "partial_rotary_factor": 1.0, "quantization_config": None}
    BODY = ("model.",)
    DROPOUTS = ("resid_pdrop",)
    USUAL_IDS: ClassVar = {"bos_token_id": 1, "eos_token_id": 2}
    LEARNS: ClassVar = {"lm": "next token"}
    HEAD_NORMS: ClassVar[bool] = False          # a norm on each head's queries and keys

    vocab_size: int = 32000                     # V
    hidden_size: int = 4096                     # D
    intermediate_size: int = 11008              # F
    num_hidden_layers: int = 32                 # L
    num_attention_heads: int = 32               # H
    num_key_value_heads: int | None = None      # G; None: as many as query heads
    head_dim: int | None = None                 # K; None: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None            # see ops/rope.py
    rope_interleaved: bool = False              # False: rotate halves, as Hugging Face; True: adjacent pairs, as Meta
    sliding_window: int | None = None           # keys that a query sees, itself included; None: all
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    resid_pdrop: float = 0.0                    # dropout on the embeddings and on each residual branch
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    head: Literal["lm", "classification"] = "lm"            # predicts the next token, or the class of the text
    num_labels: int = 2                         # C

    def __post_init__(self):
        self.check(positive=("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                             "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
                             "sliding_window", "num_labels"), shares=("resid_pdrop",), choices={"head": self.HEADS},
                   multiples=[("hidden_size", "num_attention_heads")] if self.head_dim is None else [])
        for name in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.num_attention_heads % self.groups:
            raise UserError(f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                            f"{self.groups}; change one of them")
        if self.head_width % 2:
            raise UserError(f"the head width is {self.head_width}, but rotary embeddings rotate pairs; make it even")
        items(self.rope_scaling)                                # raises UserError if unsupported
        super().__post_init__()

    @property
    def groups(self) -> int:
        """G"""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def head_width(self) -> int:
        """K"""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def biases(self) -> tuple[bool, bool]:
        """(do q_proj, k_proj and v_proj have biases?, does o_proj?)"""
        return self.attention_bias, self.attention_bias

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer; None: its queries see all earlier keys."""
        return self.sliding_window

    def copies(self) -> dict[str, str]:
        """See Config.copies."""
        tied = self.tie_word_embeddings and self.head == "lm"
        return {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}

    @classmethod
    def from_dict(cls, stored: dict):
        """The configuration from a config.json; see Config.from_dict."""
        stored = dict(stored)
        rope = stored.pop("rope_parameters", None) or {}             # the newer form of rope_theta and rope_scaling
        if not isinstance(rope, dict):
            raise UserError(f"config.json has rope_parameters = {rope!r}, but it must be an object; fix it")
        if nested := [name for name, value in rope.items() if isinstance(value, dict)]:
            raise UserError(f"config.json has rope_parameters for each type of layer, such as {nested[0]!r}, but all "
                            f"layers of {with_article(cls.TYPE)} have the same; give one rope_theta")
        if "rope_theta" in rope:
            stored["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            stored["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        scaling = stored.get("rope_scaling")
        if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) == "yarn":
            original = stored.get("max_position_embeddings", cls.max_position_embeddings)
            stored["rope_scaling"] = {"original_max_position_embeddings": original, **scaling}
        if "partial_rotary_factor" in rope:
            stored["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if cls.window_is_ignored(stored):
            del stored["sliding_window"]
        return super().from_dict(stored)

    @classmethod
    def window_is_ignored(cls, stored: dict) -> bool:
        """Does a config.json of another program have a window, which transformers does not apply to a LLaMA?"""
        return cls is LlamaConfig and stored.get("sliding_window") is not None and "rope_interleaved" not in stored

    @classmethod
    def notes_on(cls, stored: dict) -> tuple[str, ...]:
        """See Config.notes_on."""
        if cls.window_is_ignored(stored):
            return (f"the sliding_window {stored['sliding_window']} of config.json is ignored, as transformers ignores "
                    f"it for a llama; set model_type to mistral if the model was trained with this window",)
        return super().notes_on(stored)

    @classmethod
    def small(cls, shape: Dimensions):
        """The configuration of this size.

        By default F is 8/3 D, rounded up to a multiple of 32, because a gated unit has three matrices instead of two.
        """
        return cls(vocab_size=shape.vocab_size, hidden_size=shape.width,
                   intermediate_size=-(-shape.width * 8 // 96) * 32 if shape.hidden is None else shape.hidden,
                   num_hidden_layers=shape.depth, num_attention_heads=shape.heads, num_key_value_heads=None,
                   head_dim=None, max_position_embeddings=shape.context, rms_norm_eps=1e-5, sliding_window=None,
                   resid_pdrop=shape.dropout, head=shape.head,
                   pad_token_id=shape.pad_id if shape.head == "classification" else None,
                   bos_token_id=shape.bos_id, eos_token_id=shape.eos_id)

    def same_in_transformers(self) -> type[Config] | None:
        """LLaMA in transformers has no window and Mistral no biases; see Config.same_in_transformers.

        For its LLaMA, but not for its Mistral, H must divide D, which it need not after pruning.
        """
        if self.rope_interleaved:
            return None
        if self.sliding_window is None and self.hidden_size % self.num_attention_heads == 0:
            return LlamaConfig
        return None if self.attention_bias or self.mlp_bias else MistralConfig

    def to_dict(self) -> dict:
        """The contents of config.json: the keys that Hugging Face reads, and our own."""
        return {"hidden_act": "silu", **super().to_dict(),
                "num_key_value_heads": self.groups, "head_dim": self.head_width}


def no_biases(c: LlamaConfig, *names: str) -> None:
    """Raise UserError if one of these fields gives biases to a family that has none there."""
    if chosen := [name for name in names if getattr(c, name)]:
        raise UserError(f"{with_article(c.TYPE)} has no biases to switch on with {chosen[0]}; leave it False, "
                        f"or use a llama")


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """The configuration of a Mistral (Jiang et al., 2023): a LLaMA whose queries see a window of keys."""

    TYPE = "mistral"
    HEADS: ClassVar = {head: f"Mistral{name}" for head, name in HEADS.items()}
    ALIASES: ClassVar = {"MistralModel": "lm"}

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    def __post_init__(self):
        super().__post_init__()
        no_biases(self, "attention_bias", "mlp_bias")

    def same_in_transformers(self) -> type[Config] | None:
        """See Config.same_in_transformers."""
        return None if self.rope_interleaved else MistralConfig


@dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """The configuration of a Qwen2 (Yang et al., 2024): a LLaMA with biases on queries, keys and values alone.

    Only the layers from max_window_layers on have the window, and only if use_sliding_window is true.
    """

    TYPE = "qwen2"
    HEADS: ClassVar = {head: f"Qwen2{name}" for head, name in HEADS.items()}
    ALIASES: ClassVar = {"Qwen2Model": "lm"}
    USUAL_IDS: ClassVar = {}

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None        # of each layer: full_attention or sliding_attention

    def __post_init__(self):
        super().__post_init__()
        no_biases(self, "mlp_bias", *(["attention_bias"] if self.biases == (True, False) else []))
        types = self.layer_types
        if types is not None and (len(types) != self.num_hidden_layers or
                                  not {*types} <= {"full_attention", "sliding_attention"}):
            raise UserError(f"layer_types is {types!r}; it must name full_attention or sliding_attention for each of "
                            f"the {self.num_hidden_layers} layers")

    @property
    def biases(self) -> tuple[bool, bool]:
        """(True, False)"""
        return True, False

    @classmethod
    def small(cls, shape: Dimensions):
        """LlamaConfig.small; a sliding_window would hold for all layers."""
        return replace(super().small(shape), use_sliding_window=True, max_window_layers=0)

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer; None: its queries see all earlier keys."""
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None

    def same_in_transformers(self) -> type[Config] | None:
        """See Config.same_in_transformers."""
        return None if self.rope_interleaved else type(self)


@dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """The configuration of a Qwen3 (Yang et al., 2025): a LLaMA with a norm on each head's queries and keys."""

    TYPE = "qwen3"
    HEADS: ClassVar = {head: f"Qwen3{name}" for head, name in HEADS.items()}
    ALIASES: ClassVar = {"Qwen3Model": "lm"}
    HEAD_NORMS = True

    head_dim: int | None = 128

    @property
    def biases(self) -> tuple[bool, bool]:
        """(do q_proj, k_proj and v_proj have biases?, does o_proj?)"""
        return self.attention_bias, self.attention_bias
