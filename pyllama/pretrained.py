"""A model and its tokenizer: read from files, asked for its loss or its scores, made to write, saved.

Files are a run, a checkpoint, a Hugging Face folder or a llama2.c file.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import beam, files, generation, params
from pyllama.device import host
from pyllama.errors import UserError
from pyllama.formats import llama2c
from pyllama.models import MODELS
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint


@dataclass
class Model:
    """A model that is ready to use.

    config      its configuration, under Hugging Face's names; config.model is the module with its passes
    params      the tree of its arrays, under the names of a state dict; training changes them in place
    tokenizer   None where the files have none
    notes       what the user should know about how it was read
    """
    config: Any
    params: dict
    tokenizer: Tokenizer | None = None
    notes: tuple[str, ...] = ()

    def loss(self, ids, labels, **options):
        """(mean loss in nats per target, back);  back(dloss=1.0) gives the gradients, a tree of the form of params.

        ids       integers [B T]
        labels    as in Hugging Face's models: of a text [B T], not shifted, -100 where a token does not count; of
                  classes [B]
        options   mask [B T] (0 marks padding), label_smoothing, z_loss, recompute: see pyllama.models.ModelModule

        Raises IndexError if an id is not below vocab_size, UserError if the model has no loss.
        """
        return self.config.model.loss(np.asarray(ids), np.asarray(labels), self.params, self.config, **options)

    def logits(self, ids, **options):
        """(scores, back): of the next token [B T V], of classes [B C], or of what the head scores, for ids [B T].

        back(dscores) gives the gradients, a tree of the form of params.  options: mask [B T], recompute.
        """
        return self.config.model.logits(np.asarray(ids), self.params, self.config, **options)

    def generate(self, prompt: str | Sequence[str], **options) -> str | list[str]:
        """The text that continues a prompt, the prompt included; of an encoder-decoder, the text it writes for it.

        A str gives a str, a list of them a list; with num_return_sequences above 1 always a list.  Greedy unless
        do_sample=True.

        options   of generation.GenerationConfig: max_new_tokens, do_sample, temperature, top_k, top_p, min_p,
                  repetition_penalty, num_return_sequences, stop_strings, seed; for an encoder-decoder those of
                  beam.SearchConfig: num_beams, max_new_tokens, length_penalty, early_stopping

        Raises UserError if the model writes no text, has no tokenizer, or cannot take the prompt or an option.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        write = self._targets if self.config.head == "seq2seq" else self._continued
        texts = write(prompts, options)
        return texts[0] if isinstance(prompt, str) and len(texts) == 1 else texts

    def _continued(self, prompts, options):
        tokenizer = self.require_tokenizer()
        if self.config.learns != "next token":
            raise UserError(f"this {self.config.TYPE} has the head {self.config.head!r}, which does not write text; "
                            f"ask it with pyllama.predict, or train a model that writes")
        settings = generation.GenerationConfig(**options)
        prompts = [generation.startable(prompt, tokenizer) for prompt in prompts]
        ids = [tokenizer.encode(prompt, add_special_tokens=True).tolist() for prompt in prompts]
        results = generation.generate(self.params, self.config, ids, tokenizer, settings)
        repeated = [prompt for prompt in prompts for _ in range(settings.num_return_sequences)]
        return [f"{prompt}{result.text}" for prompt, result in zip(repeated, results, strict=True)]

    def _targets(self, prompts, options):
        tokenizer = self.require_tokenizer()
        ids = special.encode(tokenizer, prompts, self.config.max_position_embeddings)
        found = beam.targets(self.params, self.config, ids, beam.SearchConfig(**options), tokenizer.vocab_size)
        return [tokenizer.decode(best.ids, skip_special_tokens=True) for best, *_ in found]

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.  Raises UserError if there is none."""
        if self.tokenizer is None:
            raise UserError("the model has no tokenizer, so it cannot read or write text; load it with tokenizer=FILE")
        return self.tokenizer

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and tokenizer.json, as Hugging Face reads them, into the folder.

        The folder is made if it is not there; each file is replaced when the new one is whole.  Raises UserError if it
        holds a run, or cannot be written.
        """
        folder = Path(folder)
        if (folder / "checkpoints").exists():
            raise UserError(f"{folder} holds a run, which a saved model would damage; choose another folder")
        tensors = {name: host(a) for name, a in params.leaves(self.params)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another") from None
        files.export(folder / checkpoint.MODEL, files.to_safetensors(tensors))
        files.export(folder / checkpoint.CONFIG, [files.to_json(self.config.to_dict())])
        if self.tokenizer:
            files.export(folder / checkpoint.TOKENIZER, [self.tokenizer.rust.to_str(pretty=True).encode()])


def load(path: str | Path, tokenizer: str | Path | None = None, dtype: str = "float32",
         change: Callable | None = None) -> Model:
    """The model at `path`, its weights as `dtype`, with the tokenizer beside it unless another one is named.

    change(config) gives another configuration, with another head say: what that needs and the file lacks is drawn as
    init() does, what it does not need is left out, and `notes` says so.

    Raises UserError if there is no model, if a file is damaged, or if the tokenizer has ids the model lacks.

    >>> import tempfile, pyllama
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> folder = tempfile.mkdtemp()
    >>> model.save(folder)
    >>> pyllama.load(folder).config.hidden_size
    8
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no {path}; give a run, a checkpoint, a Hugging Face folder or a llama2.c file")
    if path.is_file():
        config, tree = llama2c.read(path)
        tree, config = llama2c.to_halves(tree, config)          # what a config.json can say to other readers
        tree = params.rebuild(tree, (params.cast(a, dtype) for _, a in params.leaves(tree)))
        model = Model(config, tree)
    else:
        saved = checkpoint.load(path)
        config = config_of(saved)
        config = change(config) if change else config
        tree, notes = fitted(saved.tensors, config, dtype, strict=change is None)
        beside = Tokenizer.load(saved.tokenizer_path) if saved.tokenizer_path else None
        model = Model(config, tree, beside, (*saved.notes, *notes))
    if tokenizer is not None:
        llama2c_file = str(tokenizer).endswith(".bin")
        model = replace(model, tokenizer=(llama2c.read_tokenizer if llama2c_file else Tokenizer.load)(tokenizer))
    if model.tokenizer and model.tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {model.tokenizer.vocab_size} tokens but the model's vocabulary has "
                        f"{model.config.vocab_size}; give the tokenizer that the model was trained with")
    return model


def changed(model: Model, config, dtype: str = "float32") -> Model:
    """The model with another configuration, with another head say: see load()."""
    tree, notes = fitted(dict(params.leaves(model.params)), config, dtype, strict=False)
    return Model(config, tree, model.tokenizer, (*model.notes, *notes))


def fitted(tensors: dict, config, dtype: str, strict: bool):
    """(the tree of parameters from a state dict, notes).

    strict: the names must be those of the configuration; else only those of its BODY must be there, and the notes say
    what was drawn or left out.
    """
    tensors = config.model.tidy(tensors, config)
    fresh = config.model.init(config, dtype=dtype)
    if strict:
        return params.named(fresh, tensors), ()
    wanted = dict(params.leaves(fresh))
    drawn = [name for name, a in wanted.items() if name not in tensors or tensors[name].shape != a.shape]
    if missing := [name for name in drawn if name.startswith(config.BODY)]:
        raise UserError(f"{missing[0]} is missing, or has another shape by the configuration ({len(missing)} such "
                        f"names); give the config.json that belongs to the weights")
    unused = sorted(tensors.keys() - wanted.keys())
    notes = tuple(f"{what}: {', '.join(names)}" for what, names in (("new, drawn at random", drawn),
                                                                    ("left out", unused)) if names)
    kept = {name: a if name in drawn else tensors[name] for name, a in wanted.items()}
    return params.named(fresh, kept), notes


def config_of(saved: checkpoint.Checkpoint):
    """The configuration of what a folder holds.  Raises UserError if no family has its model_type."""
    stored = saved.config
    if not isinstance(stored, dict):
        raise UserError(f"the config.json of {saved.folder} is not an object; give the one that belongs to the weights")
    kind = str(stored.get("model_type", "llama"))
    if kind not in MODELS:
        raise UserError(f"{saved.folder} holds a {kind!r} model; known are {', '.join(MODELS)}")
    return MODELS[kind].config.from_dict(stored)
