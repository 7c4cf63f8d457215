"""A model with its tokenizer: load, save, loss, logits, generate.

A model is loaded from a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file.
"""
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pyllama import files, generation, params
from pyllama.device import host
from pyllama.errors import UserError, check_options, with_article
from pyllama.formats import llama2c, model_file, peft
from pyllama.formats.safetensors import to_safetensors
from pyllama.generation import config_file
from pyllama.models import sharing, uneven
from pyllama.models.adapters import Adapter, merged
from pyllama.models.init import new_parameters, outlines
from pyllama.quantization import EncodedArray, adapted_base, decoded_tree, encoded_tree
from pyllama.quantization.sample import quantized_tree
from pyllama.stored_config import config_of, reading_notes
from pyllama.text import special, tokenizer_files
from pyllama.text.corpus import Sources
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import adapted, checkpoint

DTYPES = ("float32", "float64", "bfloat16")
SHOWN = 8                                                   # names of tensors in a note
NEW_PARAMETERS = 64                         # more than any head has


@dataclass(eq=False)
class Model:
    """A model that is ready to use.

    config      its configuration, under Hugging Face's names; config.model is the family's module
    params      the tree of parameters, under the names of a state dict; training changes them in place
    tokenizer   its tokenizer; None if the files have none
    notes       notes for the user on how the model was loaded
    generation_config       the values of generation_config.json: see generation/config_file.py
    path        where it was loaded from; None after training
    adapters    {name: adapter}, of which use() merges one; base has the parameters without it
    """
    config: Any
    params: dict = field(repr=False)
    tokenizer: Tokenizer | None = None
    notes: tuple[str, ...] = ()
    generation_config: dict = field(default_factory=dict, repr=False)
    path: Path | None = None
    adapters: dict[str, Adapter] = field(default_factory=dict, repr=False)
    base: dict | None = field(default=None, repr=False)

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Read an adapter, of PEFT or of a run, to use() it by this name.

        Raises UserError if there is none, or if it is that of another base.
        """
        base = self.base or self.params
        self.adapters[name] = adapted.read(checkpoint.load(checkpoint.followed(folder)), base, self.config)

    def use(self, name: str | None) -> None:
        """Compute with the adapter of this name, or with None as without adapters.

        Raises UserError if there is no such adapter.
        """
        self.base = self.base or self.params
        self.params = adapted.chosen(self.base, self.adapters, name, self.config)

    def loss(self, ids: ArrayLike, labels: ArrayLike, *, mask: ArrayLike | None = None,
             **options: Any) -> tuple[Any, Callable[..., dict]]:
        """(mean loss in nats per target, back);  back(dvalue=1.0) gives the gradients, a tree of the form of params.

        ids       integers [B T]
        labels    as in Hugging Face's models: of a text [B T], not shifted, -100 to ignore a token; of classes [B]
        mask      [B T], 0 at padding; None: there is no padding
        options   label_smoothing, z_loss, recompute: see pyllama.models.ModelModule

        The loss is a 0-d float.  Raises IndexError if an id is not below vocab_size, UserError if the head has no loss.
        """
        mask = None if mask is None else np.asarray(mask)
        return self.config.model.loss(np.asarray(ids), np.asarray(labels), decoded_tree(self.params), self.config,
                                      mask=mask, **options)

    def logits(self, ids: ArrayLike, *, mask: ArrayLike | None = None,
               **options: Any) -> tuple[Any, Callable[..., dict]]:
        """(scores, back) for integers ids [B T]: of the next token [B T V], of classes [B C], or as the head has them.

        back(dscores) gives the gradients, a tree of the form of params.  mask [B T] is 0 at padding.  options:
        recompute.
        """
        mask = None if mask is None else np.asarray(mask)
        return self.config.model.logits(np.asarray(ids), decoded_tree(self.params), self.config, mask=mask, **options)

    def generate(self, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
        """The prompt and its continuation; with an encoder-decoder, the target for the prompt as source.

        A str gives a str, a list gives a list; with num_return_sequences above 1 always a list.  Decoding is greedy
        unless do_sample=True.

        options   fields of generation.GenerationConfig: max_new_tokens, do_sample, temperature, top_k, top_p, min_p,
                  repetition_penalty, num_beams, length_penalty, early_stopping, num_return_sequences, stop_strings,
                  eos_token_id, seed; fields of generation.Rules: min_new_tokens, no_repeat_ngram_size, ...

        Options that are not given come from the folder's generation_config.json.  A warning names the values in it that
        are not supported.

        Raises UserError if the model does not generate text or has no tokenizer, or if a prompt or option is invalid.

        If a prompt is longer than max_position_embeddings, a decoder reads its last tokens, and an encoder with learned
        positions refuses it.
        """
        several = isinstance(prompt, Iterable) and not isinstance(prompt, str)
        prompts: list[Any] = list(prompt) if several else [prompt]
        if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
            raise UserError(f"a prompt is {wrong[0]!r}; give a text, or a list of texts")
        results = self._results(prompts, options)
        copies = len(results) // len(prompts) if prompts else 1
        starts = [self._start(prompt) for prompt in prompts for _ in range(copies)]
        texts = [f"{start}{result.text}" for start, result in zip(starts, results, strict=True)]
        return texts[0] if isinstance(prompt, str) and len(texts) == 1 else texts

    def _results(self, prompts: Sequence[str], options: dict[str, Any]) -> list[generation.Result]:
        """The results of generate()."""
        tokenizer, config = self.require_tokenizer(), self.config
        if config.head != "seq2seq" and config.learns != "next token":
            raise UserError(f"{with_article(config.TYPE)} with the head {config.head!r} does not generate text; use "
                            f"pyllama.predict, or another model")
        check_options(options, generation.GenerationConfig, generation.Rules)
        if options.get("output_scores"):
            raise UserError("a model's generate() returns texts without scores; use pyllama.generation.generate, or "
                            "remove output_scores")
        plan = config_file.understood(self.generation_config, config)
        for note in plan.notes:
            warnings.warn(note, stacklevel=3)
        settings, rules = plan.settings(options)
        if config.head == "seq2seq":
            ids: Any = special.encode(tokenizer, prompts, allowed_special="all")
        else:
            ids = [special.prompt(tokenizer, self._start(prompt)) for prompt in prompts]
        return generation.generate(self.params, plan.config, ids, tokenizer, settings, rules=rules)

    def _start(self, prompt: str) -> str:
        """What a result begins with: the prompt, unless the result is the target for a source."""
        return "" if self.config.head == "seq2seq" else generation.startable(prompt, self.require_tokenizer())

    def quantize(self, dtype: str, data: Sources | None = None) -> "Model":
        """The model in a storage format of GGUF: its matrices become EncodedArrays, norms and biases float32.

        dtype   "q8_0", "q4_0", "f16" or "bf16"
        data    a text to calibrate with: files, folders, patterns; None: numbers are rounded to the nearest

        Raises UserError for another dtype, a quantized model, or a text that is shorter than a window.
        """
        tree = quantized_tree(self.params, self.config, dtype, data, self.require_tokenizer)
        return replace(self, params=tree, adapters={}, base=None)

    def expanded(self) -> "Model":
        """The same function without shared weights, which other programs can read: see models/sharing.py."""
        config, tree = sharing.expanded(self.config, self.params)
        return replace(self, config=config, params=tree, adapters={}, base=None)

    def padded(self) -> "Model":
        """The same function with layers of equal sizes, which other programs can read: see models/uneven.py."""
        config, tree = uneven.padded(self.config, decoded_tree(self.params))
        return replace(self, config=config, params=tree, adapters={}, base=None)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.  Raises UserError if there is none."""
        if self.tokenizer is None:
            raise UserError("the model has no tokenizer, so it cannot read or write text; load it with tokenizer=FILE")
        return self.tokenizer

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Write config.json, model.safetensors and the tokenizer's files into the folder, in Hugging Face's format.

        The folder is created if necessary; each file is replaced atomically.  Files of another model's tokenizer are
        deleted.  Raises UserError if the folder contains a run or an adapter, is a checkpoint, or cannot be written.

        A name that ends in .gguf is that of a file for llama.cpp, which is replaced only if `force` is set.  A warning
        says what llama.cpp will do otherwise.  Raises UserError if it cannot have the model or the tokenizer.
        """
        folder = Path(folder)
        if folder.suffix.lower() == model_file.SUFFIX:
            for note in model_file.write(folder, self.config, self.params, self.tokenizer, force):
                warnings.warn(note, stacklevel=2)
            return
        require_unused(folder)
        tree, config = decoded_tree(merged(self.params, self.config)), self.config
        if getattr(config, "rope_interleaved", False) and not config.HEAD_NORMS:
            tree, config = llama2c.to_halves(tree, config)      # the order of rows in Hugging Face's files
        tensors = {name: host(a) for name, a in params.leaves(tree)}
        try:
            files.make_folder(folder)
        except OSError as error:
            raise UserError(f"cannot create the folder {folder}: {error.strerror}; choose another") from None
        of_tokenizer = self.tokenizer.files(self.config.takes_types) if self.tokenizer else {}
        for name in {*tokenizer_files.FILES, *tokenizer_files.BESIDE} - of_tokenizer.keys():
            files.remove(folder / name)
        files.export(folder / checkpoint.MODEL, to_safetensors(tensors))
        files.export(folder / checkpoint.CONFIG, [files.to_json(config.to_dict())])
        files.remove(folder / config_file.FILE)
        if self.generation_config:
            files.export(folder / config_file.FILE, [files.to_json(self.generation_config)])
        for name, text in of_tokenizer.items():
            files.export(folder / name, [text.encode()])


def require_unused(folder: Path) -> None:
    """Raise UserError if the folder contains a run or an adapter, or is a checkpoint: a saved model would damage it."""
    reasons = {"contains a run": (folder / "checkpoints").exists(), "belongs to a run": checkpoint.in_run(folder),
               "contains an adapter": (folder / peft.CONFIG).exists()}
    if what := next((what for what, is_so in reasons.items() if is_so), ""):
        raise UserError(f"{folder} {what}, which a saved model would damage; choose another folder")


def check_dtype(dtype: str, *choices: str) -> None:
    """Raise UserError if weights cannot have this dtype.  choices: those that they can have; none: DTYPES."""
    if dtype not in (choices or DTYPES):
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(choices or DTYPES)}")


def load(path: str | Path, tokenizer: str | Path | None = None, dtype: str = "float32",
         change: Callable | None = None, allow_nan: bool = False, base_dtype: str | None = None) -> Model:
    """Load a model, its weights and its tokenizer.

    path         a run, its files `latest` or `best`, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
    tokenizer    a tokenizer.json, vocab.txt, vocab.json, tokenizer.model or llama2.c tokenizer; None: the one in the
                 folder
    dtype        of the weights: "float32", "float64" or, for the matrices, "bfloat16", as quantize("bf16") stores them;
                 encoded matrices of a GGUF file stay so unless it is float64
    change       change(config) returns another configuration, for example with another head.  Parameters that the file
                 lacks are initialized at random, those that are not needed are dropped, and model.notes lists both
    allow_nan    accept weights that are NaN or infinite
    base_dtype   of a folder: store the layers' matrices so while they are read, as the base of adapters: see Adapting

    Raises UserError if there is no model, if a file is damaged, if the dtype is another, or if the tokenizer has more
    tokens than the model.

    >>> import tempfile, pyllama
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> folder = tempfile.mkdtemp()
    >>> model.save(folder)
    >>> pyllama.load(folder).config.hidden_size
    8
    """
    check_dtype(dtype)
    rounds, dtype = dtype == "bfloat16", "float32" if dtype == "bfloat16" else dtype
    path = checkpoint.followed(path)
    if not path.exists():
        raise UserError(f"there is no model at {path}; give a run, a checkpoint, a Hugging Face folder, a GGUF or a "
                        f"llama2.c file")
    if path.is_file():
        model = Model(*model_file.read(path, dtype, its_tokenizer=tokenizer is None))
        model = changed(model, change(model.config), dtype) if change else model
    else:
        saved = checkpoint.load(path, mapped=base_dtype is not None)
        model = with_adapter(saved, dtype, change) if saved.adapter else whole(saved, dtype, change, base_dtype)
    if not allow_nan:
        require_finite(model, path)
    if rounds:
        model = replace(model, params=encoded_tree(model.params, "bf16", model.config))
    if tokenizer is not None:
        llama2c_file = str(tokenizer).endswith(".bin")
        model = replace(model, tokenizer=(llama2c.read_tokenizer if llama2c_file else Tokenizer.load)(tokenizer))
    if model.tokenizer:
        model = replace(model, tokenizer=special.knowing(model.tokenizer, model.config))
    unknown = special.unknown_tokens(model.tokenizer, model.config.vocab_size)
    return replace(model, notes=(*model.notes, *unknown), path=path.resolve())


def whole(saved: checkpoint.Checkpoint, dtype: str, change: Callable | None, base_dtype: str | None) -> Model:
    """The model of a checkpoint that has all its weights."""
    config = config_of(saved, any_head=change is not None)
    config = change(config) if change else config
    try:
        config, tree, notes = fitted(saved.tensors, config, dtype, change is None, base_dtype=base_dtype)
    except UserError:
        config_of(saved, any_head=False)                        # an architecture that is not supported explains it
        raise
    beside = Tokenizer.load(saved.folder) if tokenizer_files.found(saved.folder) else None
    generation_config = config_file.read(saved.folder, config.extra)
    return Model(config, tree, beside, (*saved.notes, *reading_notes(saved), *notes), generation_config)


def with_adapter(saved: checkpoint.Checkpoint, dtype: str, change: Callable | None) -> Model:
    """The base model of an adapter, which is merged into it."""
    own = (lambda _: config_of(saved)) if saved.config else None
    base = base_model(saved, dtype, own)
    beside = Tokenizer.load(saved.folder) if tokenizer_files.found(saved.folder) else base.tokenizer
    # A base may itself be one with an adapter; and what was new in it is not new here.
    model = Model(base.config, base.params, beside, saved.notes, base.generation_config)
    model.adapters = {"default": adapted.read(saved, model.params, model.config)}
    model.use("default")
    return changed(model, change(model.config), dtype) if change else model


def base_params(saved: checkpoint.Checkpoint, config: Any, dtype: str) -> dict | None:
    """The parameters of the base of a run of adapters; None of another run."""
    return base_model(saved, dtype, lambda _: config).params if saved.adapter else None


def base_model(saved: checkpoint.Checkpoint, dtype: str, change: Callable | None) -> Model:
    """The base model of an adapter as it was trained beside; parameters that it lacks are in the adapter, so 0 here."""
    with outlines():
        return load(adapted.base_of(saved), None, dtype, change, base_dtype=adapted.base_dtype(saved))


def changed(model: Model, config, dtype: str = "float32") -> Model:
    """The model with another configuration, for example with another head: see `change` in load().

    Matrices that are encoded stay so.
    """
    before = dict(params.leaves(model.params))
    config, tree, notes = fitted(dict(params.leaves(decoded_tree(model.params))), config, dtype, False, copy=True)
    tree = params.rebuild(tree, (kept if isinstance(kept := before.get(name), EncodedArray) and
                                 kept.shape == leaf.shape else leaf for name, leaf in params.leaves(tree)))
    return replace(model, config=config, params=tree, notes=(*model.notes, *notes), adapters={}, base=None)


def fitted(tensors: dict, config, dtype: str, strict: bool, copy: bool = False, base_dtype: str | None = None):
    """(configuration, tree of parameters, notes) from a state dict {name: array}.

    strict    True: all parameters must be there.  False: only those of the configuration's BODY are required, and the
              others are initialized at random
    copy, base_dtype    see quantization/adapted_base.py

    The configuration changes if tied matrices differ.  The notes list the parameters that were initialized and the
    tensors that are not used.  Raises UserError if a required parameter is missing or has the wrong shape.
    """
    tensors = config.model.tidy(tensors, config)
    for twin, name in config.copies().items():
        if twin in tensors:
            tensors.setdefault(name, tensors[twin])             # some programs store the copy alone
    asked, config = config, config.fitted_to(tensors)
    if config is not asked:
        tensors = {twin: tensors[name] for twin, name in asked.copies().items() if name in tensors} | tensors
    outline = outlined(config, tensors, dtype)
    wanted = dict(params.leaves(outline))
    new = [name for name, a in wanted.items() if name not in tensors or tensors[name].shape != a.shape]
    if missing := [name for name in new if name.startswith(config.BODY) or (strict and not config.spares(name))]:
        raise UserError(complaint(missing, tensors, config))
    if whole := [name for name in wanted if name not in new and tensors[name].dtype.kind in "iub"]:
        raise UserError(f"{whole[0]} is {tensors[whole[0]].dtype} in the weights, which are quantized; convert the "
                        f"model to float32 or bfloat16 with the library that wrote it")
    unused = sorted(tensors.keys() - wanted.keys() - asked.copies().keys())
    notes = [f"initialized at random: {', '.join(new)}"] if new else []
    if unused:
        more = f", and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        notes.append(f"{'not used' if strict else 'dropped'}: {', '.join(unused[:SHOWN])}{more}")
    if config is not asked:
        untied = asked.copies().keys() - config.copies().keys()
        notes.append(f"not tied, because they differ from the token embeddings: {', '.join(sorted(untied))}")
    drawn = new_parameters(config, dtype, {wanted[name].shape for name in new}) if new else {}
    merged = {name: drawn[name] if name in new else tensors[name] for name in wanted}
    return config, adapted_base.named(outline, merged, copy, config, base_dtype, dtype), tuple(notes)


def outlined(config, tensors: dict, dtype: str = "float32") -> dict:
    """The tree of the configuration's parameters, as arrays without memory; a new head may have more than the weights.

    Raises UserError if it would have many more parameters than the weights.
    """
    with outlines(len(tensors) + NEW_PARAMETERS):
        return config.model.init(config, dtype=dtype)


def require_finite(model: "Model", path: Path) -> None:
    """Raise UserError if a parameter is NaN or infinite."""
    for name, a in params.leaves(model.params):
        if isinstance(a, EncodedArray):
            if a.is_finite():
                continue
            a = a.scales()
        with np.errstate(all="ignore"):
            finite = np.isfinite(np.vdot(a, a)) or np.isfinite(a).all()         # the first is fast, but may overflow
        if not finite:
            count = a.size - int(np.isfinite(a).sum())
            raise UserError(f"{count} of {a.size} numbers of {name} in {path} are NaN or infinite: the model is "
                            f"damaged, or its training diverged; give another checkpoint, or study this one with "
                            f"`pyllama inspect` or load(path, allow_nan=True)")


def complaint(missing: list[str], tensors: dict, config) -> str:
    """The message about parameters that are missing or have the wrong shape."""
    if not any(name in tensors or name.startswith(config.BODY) for name in missing):
        cure = f"give the whole model, a {config.HEADS[config.head]}, not its body" if config.learns else \
            "fine-tune the model on a task first, or give a model with this head"
        return (f"the weights have no {missing[0]}, which the head {config.head!r} of {with_article(config.TYPE)} "
                f"needs; {cure}")
    name = next((name for name in missing if name in tensors), missing[0])
    others = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    if name in tensors:
        wanted = dict(params.leaves(outlined(config, tensors)))[name].shape
        return (f"{name} has shape {tensors[name].shape} in the weights but {wanted} by the configuration{others}; "
                f"give the config.json that belongs to the weights")
    return f"{name} is missing in the weights{others}; give the config.json that belongs to the weights"
