"""A trained model from whatever holds one: a run, a checkpoint, a Hugging Face folder, a llama2.c file."""
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pyllama import params
from pyllama.errors import UserError
from pyllama.formats import llama2c
from pyllama.models import bart, bert, gpt2, llama, lstm, transformer
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint

MODELS: dict[str, tuple[ModuleType, Any]] = {               # model_type in config.json -> module, configuration
    "llama": (llama, llama.LlamaConfig), "gpt2": (gpt2, gpt2.GPT2Config), "bert": (bert, bert.BertConfig),
    "transformer": (transformer, transformer.TransformerConfig), "bart": (bart, bart.BartConfig),
    "lstm": (lstm, lstm.LstmConfig)}


BODIES = ("model.", "transformer.", "bert.", "embedding.", "lstm.")     # what a model is without its head


class Pretrained(NamedTuple):
    model: ModuleType
    config: Any
    params: dict
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]                                  # what the reader should know about how it was found


def load(path: str | Path, tokenizer: str | Path | None = None, dtype: str = "float32",
         change: Callable | None = None) -> Pretrained:
    """The model at `path`, its weights as `dtype`, with the tokenizer beside it unless another one is named.

    change(config) gives another configuration, with another head say: what that needs and the file lacks is drawn as
    init() does, what it does not need is left out, and `notes` says so.

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
        config = change(config) if change else config
        fresh = model.init(config, dtype=dtype)
        tensors, notes = model.tidy(saved.tensors, config), saved.notes
        if change:
            tensors, notes = refitted(tensors, fresh, notes)
        own = Tokenizer.load(saved.tokenizer_path) if saved.tokenizer_path else None
        found = Pretrained(model, config, params.named(fresh, tensors), own, notes)
    if tokenizer is not None:
        given = llama2c.read_tokenizer(tokenizer) if str(tokenizer).endswith(".bin") else Tokenizer.load(tokenizer)
        found = found._replace(tokenizer=given)
    if found.tokenizer and found.tokenizer.vocab_size > found.config.vocab_size:
        raise UserError(f"the tokenizer has {found.tokenizer.vocab_size} tokens but the model's vocabulary has "
                        f"{found.config.vocab_size}; give the tokenizer that the model was trained with")
    return found


def refitted(tensors: dict, fresh, notes):
    """The tensors that a changed configuration asks for, and what was drawn or left out for it."""
    wanted = dict(params.leaves(fresh))
    drawn = [name for name, a in wanted.items() if name not in tensors or tensors[name].shape != a.shape]
    if body := [name for name in drawn if name.startswith(BODIES) and "pooler" not in name]:
        raise UserError(f"{body[0]} is missing, or has another shape by the configuration ({len(body)} such names); "
                        f"give the config.json that belongs to the weights")
    unused = sorted(tensors.keys() - wanted.keys())
    notes += tuple(f"{what}: {', '.join(names)}" for what, names in (("new, drawn at random", drawn),
                                                                     ("left out", unused)) if names)
    return {name: a if name in drawn else tensors[name] for name, a in wanted.items()}, notes


def of_type(config: dict, folder):
    if not isinstance(config, dict):
        raise UserError(f"the config.json of {folder} is no object; give the one that belongs to the weights")
    kind = str(config.get("model_type", "llama"))
    if kind not in MODELS:
        raise UserError(f"{folder} holds a {kind!r} model; known are {', '.join(MODELS)}")
    return MODELS[kind]
