"""A trained model from whatever holds one: a run, a checkpoint, a Hugging Face folder, a llama2.c file."""
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pyllama import checkpoint, params
from pyllama.errors import UserError
from pyllama.formats import llama2c
from pyllama.models import llama
from pyllama.tokenizer import Tokenizer

MODELS = {"llama": (llama, llama.LlamaConfig)}              # model_type in config.json -> module, configuration


class Pretrained(NamedTuple):
    model: ModuleType
    config: Any
    params: dict
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]                                  # what the reader should know about how it was found


def load(path: str | Path, tokenizer: str | Path | None = None, dtype: str = "float32") -> Pretrained:
    """The model at `path`, its weights as `dtype`, with the tokenizer beside it unless another one is named.

    Raises UserError if there is no model, if a file is damaged, or if the tokenizer has ids the model lacks.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no {path}; give a run, a checkpoint, a Hugging Face folder or a llama2.c file")
    if path.is_file():
        config, tree = llama2c.read(path)
        tree, config = llama2c.to_halves(tree, config)          # what a config.json can say to other readers
        tree = params.rebuild(tree, (params.cast(a, dtype) for _, a in params.leaves(tree)))
        found = Pretrained(llama, config, tree, None, ())
    else:
        saved = checkpoint.load(path)
        model, configuration = of_type(saved.config, saved.folder)
        config = configuration.from_dict(saved.config)
        tree = params.named(model.init(config, dtype=dtype), with_tied(saved.tensors, config))
        own = Tokenizer.load(saved.tokenizer_path) if saved.tokenizer_path else None
        found = Pretrained(model, config, tree, own, saved.notes)
    if tokenizer is not None:
        given = llama2c.read_tokenizer(tokenizer) if str(tokenizer).endswith(".bin") else Tokenizer.load(tokenizer)
        found = found._replace(tokenizer=given)
    if found.tokenizer and found.tokenizer.vocab_size > found.config.vocab_size:
        raise UserError(f"the tokenizer has {found.tokenizer.vocab_size} tokens but the model's vocabulary has "
                        f"{found.config.vocab_size}; give the tokenizer that the model was trained with")
    return found


def of_type(config: dict, folder):
    kind = config.get("model_type", "llama")
    if kind not in MODELS:
        raise UserError(f"{folder} holds a {kind!r} model; known are {', '.join(MODELS)}")
    return MODELS[kind]


def with_tied(tensors: dict, config) -> dict:
    """Without the copy of the embeddings that some writers store as the output of a tied model."""
    return {k: v for k, v in tensors.items() if not (config.tie_word_embeddings and k == "lm_head.weight")}
