"""The commands on texts, one function each; a command's flags are its parameters and its dataclasses' fields."""
import hashlib
import itertools
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from rich.progress import Progress
from tyro.conf import Positional, arg

from pyllama import memory, params, pretrained
from pyllama.cli import tasks
from pyllama.cli.display import announce, console
from pyllama.cli.plot import draw
from pyllama.cli.running import check_log_steps, require_new, show_end, show_run
from pyllama.device import like as on
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, startable, stream
from pyllama.generation import generate as generate_batch
from pyllama.models import MODELS
from pyllama.models.config import Config, Dimensions, Learns
from pyllama.text import corpus, special
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Tokens, split, token_file
from pyllama.text.tokens import prepare as encode_once
from pyllama.training import checkpoint, objectives
from pyllama.training.loop import Settings, start
from pyllama.training.parallel import first_alone, of_environment
from pyllama.training.run import BestSoFar, RunPolicy, from_stored, restore, run

LEARNT = ("char", "byte", "bpe")                            # tokenizers that are made, not read
TEXT_MODELS = [kind for kind, family in MODELS.items() if family.config.LEARNS]     # models that learn from text
Device = Literal["cpu", "cuda"]
# Flags that some families alone have, and the fields of a configuration that they set.
FIELDS = {"num_key_value_heads": ("num_key_value_heads",), "bias": ("attention_bias", "mlp_bias"),
          "tie_word_embeddings": ("tie_word_embeddings",), "rope_theta": ("rope_theta",),
          "sliding_window": ("sliding_window",)}


@dataclass(frozen=True)
class Text:
    """The text to learn from."""

    data: tuple[str, ...]                       # files, folders, patterns, "-", "python-docs", or a .bin of tokens
    field: str = "text"                         # the field of a .jsonl file that holds the text
    tokenizer: str = "char"                     # char, byte, bpe (learnt from the text), or a tokenizer.json
    vocab_size: int = 4096                      # tokens that bpe learns
    validation: float = 0.1                     # share kept for validation
    split: Literal["position", "document"] = "position"     # keep the last part, or documents drawn at random

    @property
    def ready(self) -> Path | None:
        """The file that holds it as tokens already, if it is one."""
        return Path(self.data[0]).resolve() if len(self.data) == 1 and self.data[0].endswith(".bin") else None


@dataclass(frozen=True)
class ModelShape:
    """The shape of the model."""

    model: Annotated[str, arg(metavar=f"{{{','.join(TEXT_MODELS)}}}")] = "llama"        # its type
    num_hidden_layers: int = 6                  # blocks of attention and feed-forward
    hidden_size: int = 288                      # width between the blocks
    num_attention_heads: int = 6                # heads of queries
    num_key_value_heads: int | None = None      # heads of keys and values; None: as many as attention heads
    intermediate_size: int | None = None        # width inside the feed-forward; None: 4 hidden_size, of a LLaMA 8/3
    resid_pdrop: float = 0.0                    # dropout
    bias: bool = False                          # LLaMA: biases in the linear maps
    tie_word_embeddings: bool = False           # LLaMA: one table for reading and predicting, as the others have
    rope_theta: float = 10000.0                 # LLaMA: base of the rotary angles; higher for a longer context
    sliding_window: int | None = None           # LLaMA: tokens an attention looks back on; None: all

    def __post_init__(self):
        if self.model not in TEXT_MODELS:
            raise UserError(f"there is no model {self.model!r} that learns from text; take one of "
                            f"{', '.join(TEXT_MODELS)}")

    @property
    def family(self) -> type[Config]:
        """The class of the configuration."""
        return MODELS[self.model].config

    @property
    def objective(self) -> tuple[str, Learns]:
        """(head, what the model learns from text with it)"""
        return next(iter(self.family.LEARNS.items()))

    def config(self, context: int, tokenizer: Tokenizer):
        """The model's configuration for this vocabulary and context length."""
        shape = Dimensions(vocab_size=tokenizer.vocab_size, context=context, head=self.objective[0],
                           width=self.hidden_size, layers=self.num_hidden_layers, heads=self.num_attention_heads,
                           hidden=self.intermediate_size, dropout=self.resid_pdrop, **special.ids_of(tokenizer))
        usual = {f.name: f.default for f in fields(self)}
        changes: dict[str, Any] = {}
        for flag, names in FIELDS.items():
            value = getattr(self, flag)
            if value == usual[flag]:
                continue
            if not self.family.names().issuperset(names):
                owners = [kind for kind in TEXT_MODELS if MODELS[kind].config.names().issuperset(names)]
                raise UserError(f"{flag} is for {' and '.join(owners)} alone; leave it out, or leave out --model "
                                f"{self.model}")
            changes |= dict.fromkeys(names, value)
        return replace(self.family.small(shape), **changes)


def train(text: Text, shape: ModelShape, settings: Settings, policy: RunPolicy, out_dir: Path = Path("out"),
          log_steps: int = 50, init_from: Path | None = None, device: Device = "cpu") -> int:
    """Train a model on text: LLaMA and GPT-2 to continue it, BERT and BART to reconstruct what was masked or corrupted.

    nanoGPT's flag names work too (--n_layer, --n_embd, --max_iters, ...), and --config FILE.toml sets any flag.

    Args:
        out_dir: Folder of the run: checkpoints, log, tokens.
        log_steps: Steps between lines where there is no terminal to draw on.
        init_from: Start from the weights, shape and tokenizer of this model instead of from random numbers.
        device: Where to compute: the CPU, or a GPU through CuPy.
    """
    like, comm = on(device), of_environment(out_dir, device)        # first: is there a GPU, are the others there?
    console.quiet = comm.rank > 0
    check_log_steps(log_steps)
    if text.ready:
        text = replace(text, data=(str(text.ready),))           # absolute: a resume may start elsewhere
    require_new(out_dir)
    memory.install()
    if init_from:
        model, tokenizer = load(init_from, None if text.tokenizer in LEARNT else Path(text.tokenizer), settings.dtype)
        config = replace(model.config, **dict.fromkeys(model.config.DROPOUTS, shape.resid_pdrop))
        tree = model.params
        if others := [f.name for f in fields(shape) if f.name != "resid_pdrop" and getattr(shape, f.name) != f.default]:
            raise UserError(f"{others[0]} has no effect with init_from, which has a shape already; leave it out")
        if settings.block_size > config.max_position_embeddings:
            raise UserError(f"block_size is {settings.block_size}, but {init_from} sees "
                            f"{config.max_position_embeddings} tokens (max_position_embeddings); make it smaller")
    else:
        with_mask = objectives.needs_mask(shape.objective[1])
        tokenizer, tree = make_tokenizer(text, with_mask), None
        if with_mask:
            objectives.require_mask(shape.model, tokenizer)
        config = shape.config(settings.block_size, tokenizer)
    objectives.of(config, tokenizer)                            # before the work: can it learn from text?
    tokens = first_alone(comm, lambda: prepare(text, tokenizer, out_dir), like)
    training, validation = split(tokens, text.validation, text.split, settings.seed, settings.block_size)
    state = start(config, settings, tree, like)
    about = {"text": asdict(text), "tokens": fingerprint(tokens)}
    return show_training(out_dir, state, training, validation, settings, policy, about, tokenizer, BestSoFar(),
                         log_steps, comm)


def resume(run: Positional[Path], max_steps: int | None = None, log_steps: int = 50, device: Device = "cpu") -> int:
    """Go on with a run where its latest checkpoint is, bit for bit as if it had never stopped.

    The run keeps its text as tokens; what happens to the files it came from does not matter.

    Args:
        run: Folder of the run.
        max_steps: A new last step, to train longer; a schedule that ends there is stretched. None: as planned.
        log_steps: Steps between lines where there is no terminal to draw on.
        device: Where to compute; on the device of before it goes on bit for bit.
    """
    like, comm = on(device), of_environment(run, device)
    console.quiet = comm.rank > 0
    check_log_steps(log_steps)
    if run.resolve().parent.name == "checkpoints":
        raise UserError(f"{run} is one checkpoint; resume the run that holds it, {run.resolve().parent.parent}")
    saved = checkpoint.load(run)
    for note in saved.notes:
        console.print(note)
    if "settings" not in saved.trainer or saved.tokenizer_path is None:
        raise UserError(f"{run} holds a model but no training to go on with; start one with --init_from {run}")
    memory.install()
    settings = from_stored(Settings, saved.trainer["settings"])
    policy = from_stored(RunPolicy, saved.trainer["keeping"])
    settings = settings if max_steps is None else replace(settings, max_steps=max_steps)
    if settings.max_steps < saved.step:
        raise UserError(f"{run} is at step {saved.step} already; give a max_steps above it")
    about, tokenizer = saved.trainer["about"], Tokenizer.load(saved.tokenizer_path)
    best_so_far = from_stored(BestSoFar, saved.trainer["standing"])
    if "task" in about:
        if device != "cpu":
            raise UserError("a run of finetune is computed on the CPU; leave out --device")
        return tasks.resume(run, saved, settings, policy, tokenizer, best_so_far, log_steps)
    text = from_stored(Text, about["text"] | {"data": tuple(about["text"]["data"])})
    tokens = token_file(text.ready or run / "data/tokens.bin")
    if fingerprint(tokens) != about["tokens"]:
        raise UserError(f"{text.ready or run / 'data/tokens.bin'} is not what {run} was started with; restore it, or "
                        f"start anew with --init_from {run}")
    training, validation = split(tokens, text.validation, text.split, settings.seed, settings.block_size)
    state = start(pretrained.config_of(saved), settings, like=like)
    restore(state, saved)
    return show_training(run, state, training, validation, settings, policy, about, tokenizer, best_so_far, log_steps,
                         comm)


def make_tokenizer(text: Text, with_mask: bool) -> Tokenizer:
    """The tokenizer that --tokenizer names.  with_mask: one of byte pairs has a token for masks."""
    if text.tokenizer in ("char", "bpe") and text.ready:
        raise UserError("a .bin holds tokens, not text to learn a tokenizer from; give --tokenizer a tokenizer.json")
    if text.tokenizer == "byte":
        return Tokenizer.bytes()
    if text.tokenizer == "char":
        return Tokenizer.characters("".join(t for _, t in corpus.documents(text.data, text.field)))
    if text.tokenizer == "bpe":
        texts = (t for _, t in corpus.documents(text.data, text.field))
        return special.byte_pairs(texts, text.vocab_size, [special.MASK]) if with_mask else \
            Tokenizer.byte_pairs(texts, text.vocab_size)
    return Tokenizer.load(text.tokenizer)


def prepare(text: Text, tokenizer: Tokenizer, folder: Path) -> Tokens:
    """The tokens of the text, encoded into folder/data unless they are ready."""
    if text.ready:
        return token_file(text.ready, tokenizer.vocab_size, tokenizer.hash)
    return encode(text.data, tokenizer, folder / "data", text.field)


def fingerprint(tokens: Tokens) -> str:
    """SHA-256 of the ids."""
    return hashlib.sha256(tokens.ids.data).hexdigest()


def encode(sources, tokenizer: Tokenizer, folder: Path, field: str) -> Tokens:
    """The sources as tokens, kept in the folder; with a progress bar."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding the text", total=None)
        return encode_once(sources, tokenizer, folder, field,
                           lambda done, total: bar.update(task, completed=done, total=total))


def show_training(folder: Path, state, training, validation, settings, policy, about, tokenizer, best_so_far,
                  log_steps, comm) -> int:
    """Train while showing it; 0 when done, 130 when Ctrl-C stopped it."""
    announce(f"{state.flat.size:,} parameters, {len(training):,} tokens to train on and {len(validation):,} to "
             f"validate on, a vocabulary of {state.config.vocab_size:,}; steps {state.step} to "
             f"{settings.max_steps} in {folder}")
    source, evaluate = objectives.of(state.config, tokenizer)
    events = run(folder, state, source(training), source(validation), settings, policy, about,
                 tokenizer.rust.to_str(pretty=True), best_so_far, evaluate, comm)
    stopped = show_run(events, state, settings.max_steps, log_steps, comm)
    outcome = "stopped" if stopped else "done" if state.step == settings.max_steps else "out of patience"
    best = f"best validation loss {best_so_far.best:.4f} at step {best_so_far.best_step}"
    command = "generate" if objectives.continues(state.config) else "finetune"
    return show_end(f"{outcome} at step {state.step}", best if best_so_far.best_step else "",
                    stopped_in=folder if stopped else None, then=f"try `pyllama {command} --model {folder}`")


def generate(model: Path, settings: GenerationConfig, prompt: str = "", tokenizer: Path | None = None,
             device: Device = "cpu") -> int:
    """Continue a text.

    Args:
        model: A run, a checkpoint, a Hugging Face folder or a llama2.c file.
        prompt: The text to continue; FILE:path reads it from a file.
        tokenizer: A tokenizer.json, or a llama2.c tokenizer, to use instead of the model's own.
        device: Where to compute.
    """
    like = on(device)
    writer, tokenizer_of_model = load_writer(model, tokenizer)
    tree = params.rebuild(writer.params, (np.asarray(a, like=like) for _, a in params.leaves(writer.params)))
    if prompt.startswith("FILE:"):
        prompt = "".join(text for _, text in corpus.documents(prompt.removeprefix("FILE:")))
    prompt = startable(prompt, tokenizer_of_model)
    ids = tokenizer_of_model.encode(prompt, add_special_tokens=True).tolist()
    if settings.num_return_sequences == 1:
        for piece in itertools.chain([prompt], stream(tree, writer.config, ids, tokenizer_of_model, settings)):
            print(piece, end="", flush=True)
        print()
    else:
        for result in generate_batch(tree, writer.config, [ids], tokenizer_of_model, settings):
            print(f"{prompt}{result.text}\n{'-' * 15}")
    return 0


def load(model: Path, tokenizer: Path | None, dtype: str = "float32") -> tuple[pretrained.Model, Tokenizer]:
    """The model and its tokenizer; notes are printed."""
    memory.install()
    loaded = pretrained.load(model, tokenizer, dtype)
    for note in loaded.notes:
        console.print(note)
    if loaded.tokenizer is None:
        raise UserError(f"{model} has no tokenizer; name one with --tokenizer")
    return loaded, loaded.tokenizer


def load_writer(model: Path, tokenizer: Path | None) -> tuple[pretrained.Model, Tokenizer]:
    """load() of a model that continues texts."""
    loaded, tokenizer_of_model = load(model, tokenizer)
    if not objectives.continues(loaded.config):
        use = "use `pyllama predict`" if "task" in loaded.config.extra else "train it on a task with `pyllama finetune`"
        raise UserError(f"{model} holds a {loaded.config.TYPE} that does not continue texts; {use}")
    return loaded, tokenizer_of_model


def plot(runs: Positional[tuple[Path, ...]], out: Path | None = None) -> int:
    """Draw loss, learning rate and gradient norm of runs to a PNG.

    Args:
        runs: Folders of runs.
        out: The file to write; None: curves.png in the first run.
    """
    if not runs:
        raise UserError("plot needs the folder of a run")
    out = out or runs[0] / "curves.png"
    draw(list(runs), out)
    console.print(f"wrote {out}")
    return 0
