"""A trained model from whatever holds one: a run, a checkpoint, a Hugging Face folder, a llama2.c file."""
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pyllama import params
from pyllama.errors import UserError
from pyllama.formats import llama2c
from pyllama.models import MODELS
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint


class Pretrained(NamedTuple):
    config: Any                                             # config.model is the module that belongs to it
    params: dict
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]                                  # what the user should know about how it was read


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
        model = Pretrained(config, tree, None, ())
    else:
        saved = checkpoint.load(path)
        config = config_of(saved)
        config = change(config) if change else config
        fresh = config.model.init(config, dtype=dtype)
        tensors, notes = config.model.tidy(saved.tensors, config), saved.notes
        if change:
            tensors, notes = refitted(tensors, fresh, config.BODY, notes)
        beside = Tokenizer.load(saved.tokenizer_path) if saved.tokenizer_path else None
        model = Pretrained(config, params.named(fresh, tensors), beside, notes)
    if tokenizer is not None:
        llama2c_file = str(tokenizer).endswith(".bin")
        model = model._replace(tokenizer=(llama2c.read_tokenizer if llama2c_file else Tokenizer.load)(tokenizer))
    if model.tokenizer and model.tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {model.tokenizer.vocab_size} tokens but the model's vocabulary has "
                        f"{model.config.vocab_size}; give the tokenizer that the model was trained with")
    return model


def refitted(tensors: dict, fresh, body: tuple[str, ...], notes):
    """The tensors that a changed configuration needs, and notes on what was drawn or left out for it.

    body: prefixes of the names that must be there
    """
    wanted = dict(params.leaves(fresh))
    drawn = [name for name, a in wanted.items() if name not in tensors or tensors[name].shape != a.shape]
    if missing := [name for name in drawn if name.startswith(body)]:
        raise UserError(f"{missing[0]} is missing, or has another shape by the configuration ({len(missing)} such "
                        f"names); give the config.json that belongs to the weights")
    unused = sorted(tensors.keys() - wanted.keys())
    notes += tuple(f"{what}: {', '.join(names)}" for what, names in (("new, drawn at random", drawn),
                                                                     ("left out", unused)) if names)
    return {name: a if name in drawn else tensors[name] for name, a in wanted.items()}, notes


def config_of(saved: checkpoint.Checkpoint):
    """The configuration of what a folder holds.  Raises UserError if no family has its model_type."""
    stored = saved.config
    if not isinstance(stored, dict):
        raise UserError(f"the config.json of {saved.folder} is not an object; give the one that belongs to the weights")
    kind = str(stored.get("model_type", "llama"))
    if kind not in MODELS:
        raise UserError(f"{saved.folder} holds a {kind!r} model; known are {', '.join(MODELS)}")
    return MODELS[kind].config.from_dict(stored)
