"""The commands train and resume: one function each, whose signature gives the flags (see flags.py)."""
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pyllama import memory, pretrained
from pyllama.cli.display import announce, parameters_of
from pyllama.cli.loading import Device, encode, load
from pyllama.cli.output import console
from pyllama.cli.parsing import listed
from pyllama.cli.running import check_log_steps, show_end, show_run, show_stop
from pyllama.cli.sample import command, prompt_from, sampler
from pyllama.device import like as on
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.models.config import Config, Dimensions, Learns
from pyllama.text import cuts, special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import objectives, text_run
from pyllama.training.adapting import Adapting
from pyllama.training.lock import RunLock
from pyllama.training.loop import Settings
from pyllama.training.parallel import Communicator, from_environment
from pyllama.training.run import Plan, RunPolicy, new_run, saved_run
from pyllama.training.text_run import Text

TEXT_MODELS = [kind for kind, family in MODELS.items() if family.config.LEARNS]     # models that learn from text
# Flags that only some families have, and the configuration fields they set.
FIELDS = {"num_key_value_heads": ("num_key_value_heads",), "bias": ("attention_bias", "mlp_bias"),
          "tie_word_embeddings": ("tie_word_embeddings",), "rope_theta": ("rope_theta",),
          "sliding_window": ("sliding_window",), "share_layers": ("share_layers",),
          "embedding_size": ("embedding_size",)}


@dataclass(frozen=True)
class ModelShape:
    """The size of the model, and options of its family."""

    model: str = "llama"                        # model family that learns from text: see `pyllama models`
    num_hidden_layers: int = 6                  # number of layers
    hidden_size: int = 288                      # width of the model
    num_attention_heads: int = 6                # number of attention heads
    intermediate_size: int | None = None        # width of the feed-forward (default: 4 hidden_size; LLaMA: 8/3)
    resid_pdrop: float = 0.0                    # dropout rate
    num_key_value_heads: int | None = None      # LLaMA: number of key/value heads (default: num_attention_heads)
    tie_word_embeddings: bool = False           # LLaMA: share the embedding and output matrices
    rope_theta: float = 10000.0                 # LLaMA: base of the rotary angles
    sliding_window: int | None = None           # LLaMA: tokens that attention looks back on (default: all)
    bias: bool = False                          # LLaMA: biases in the linear layers
    share_layers: str = "1"                     # layers in a row that share weights, or the weights of each: 1,2,1,2
    embedding_size: int | None = None           # width of the table of token embeddings, projected (default: whole)

    def __post_init__(self):
        if self.model not in TEXT_MODELS:
            raise UserError(f"--model is {self.model!r}; it must be one of {', '.join(TEXT_MODELS)}")

    @property
    def family(self) -> type[Config]:
        """The class of the configuration."""
        return MODELS[self.model].config

    @property
    def objective(self) -> tuple[str, Learns]:
        """(head, training objective) of the family on plain text."""
        return next(iter(self.family.LEARNS.items()))

    def config(self, context: int, tokenizer: Tokenizer):
        """The model's configuration for this vocabulary and context length."""
        shape = Dimensions(vocab_size=tokenizer.vocab_size, context=context, head=self.objective[0],
                           width=self.hidden_size, layers=self.num_hidden_layers, heads=self.num_attention_heads,
                           hidden=self.intermediate_size, dropout=self.resid_pdrop, **special.ids_of(tokenizer))
        defaults = {f.name: f.default for f in fields(self)}
        changes: dict[str, Any] = {}
        for flag, names in FIELDS.items():
            value = getattr(self, flag)
            if value == defaults[flag]:
                continue
            if not self.family.names().issuperset(names):
                owners = [kind for kind in TEXT_MODELS if MODELS[kind].config.names().issuperset(names)]
                raise UserError(f"{flag} applies only to {listed(owners)}; remove it, or remove --model {self.model}")
            changes |= dict.fromkeys(names, value)
        return replace(self.family.small(shape), **changes)


def train(text: Text, shape: ModelShape, settings: Settings, policy: RunPolicy, out_dir: Path = Path("out"),
          log_steps: int = 50, sample_tokens: int = 60, init_from: Path | None = None, device: Device = "cpu", *,
          adapting: Adapting) -> int:
    """Train a language model on text.

    LLaMA and GPT-2 learn to predict the next token, BERT to predict masked tokens, BART to reconstruct corrupted text.
    nanoGPT's flag names work too: --n_layer, --n_embd, --max_iters, ...

    Args:
        out_dir: folder of the run: checkpoints, log, tokens
        log_steps: steps between progress lines when the output is not a terminal
        sample_tokens: tokens of text that the model writes after each evaluation, on one line; 0: none
        init_from: start from this model's weights, shape and tokenizer
        device: the CPU, or a GPU through CuPy
    """
    like = on(device, settings.dtype)                       # first: a missing GPU is an error before any work
    comm = from_environment(out_dir, device)
    console.quiet = comm.rank > 0
    check_log_steps(log_steps, sample_tokens)
    memory.install()
    with new_run(out_dir, f"`pyllama resume {out_dir}`", comm.rank == 0) as lock:
        plan, tokenizer = begin(text, shape, settings, policy, out_dir, init_from, like, comm, lock, adapting)
        return show_training(plan, tokenizer, log_steps, sample_tokens)


def begin(text: Text, shape: ModelShape, settings: Settings, policy: RunPolicy, out_dir: Path, init_from: Path | None,
          like, comm: Communicator, lock: RunLock | None, adapting: Adapting) -> tuple[Plan, Tokenizer]:
    """Plan the run of the command train."""
    place = None
    if init_from:
        named = None if text.tokenizer in text_run.LEARNED else Path(text.tokenizer)
        model, tokenizer = load(init_from, named, settings.master_dtype, base_dtype=adapting.base_dtype)
        for note in model.config.training_notes():
            console.print(note)
        config = replace(model.config, **dict.fromkeys(model.config.DROPOUTS, shape.resid_pdrop))
        tree, place = model.params, model.path
        if others := [f.name for f in fields(shape) if f.name != "resid_pdrop" and getattr(shape, f.name) != f.default]:
            raise UserError(f"{others[0]} has no effect with init_from, which sets the model's shape; remove one of "
                            f"them")
    else:
        with_mask = objectives.needs_mask(shape.objective[1])
        tokenizer, tree = text_run.make_tokenizer(text, with_mask, console.print), None
        if with_mask:
            objectives.require_mask(shape.model, tokenizer)
        config = shape.config(settings.block_size, tokenizer)
    plan = text_run.begin(out_dir, config, tokenizer, text, settings, policy, params=tree, like=like, comm=comm,
                          encode=encode, lock=lock, adapting=adapting, base=place)
    for note in special.no_end(tokenizer):
        console.print(note)
    if not text.token_file:
        tokens = getattr(plan.training, "tokens", plan.training)
        announce(cuts.end_to_end(tokens, special.frame(tokenizer), settings.block_size))
    return plan, tokenizer


def resume(run: Path, /, max_steps: int | None = None, log_steps: int = 50, sample_tokens: int = 60,
           device: Device = "cpu") -> int:
    """Continue a run from its latest checkpoint.

    The result is bit for bit that of a run that never stopped.  The run keeps its text as tokens, so the original files
    are not needed.

    Args:
        run: folder of the run
        max_steps: new number of steps, to train longer; the learning rate schedule stretches (default: as before)
        log_steps: steps between progress lines when the output is not a terminal
        sample_tokens: tokens of text that the model writes after each evaluation, on one line; 0: none
        device: the CPU, or a GPU through CuPy; results are bit-identical only on the same device
    """
    like, comm = on(device), from_environment(run, device)
    console.quiet = comm.rank > 0
    check_log_steps(log_steps, sample_tokens)
    memory.install()
    with saved_run(run, max_steps, comm.rank == 0) as saved:
        for note in (*saved.notes, *pretrained.reading_notes(saved.checkpoint)):
            console.print(note)
        config = pretrained.config_of(saved.checkpoint)
        if "task" in saved.about:
            if device != "cpu":
                raise UserError("finetune runs only on the CPU; remove --device")
            from pyllama.cli import tasks  # here, because texts are learned without the tasks
            return tasks.resume(run, saved, log_steps)
        base = pretrained.base_params(saved.checkpoint, config, saved.settings.master_dtype)
        plan = text_run.resume(run, saved, config, like=like, comm=comm, base=base)
        if "distillation" in saved.about:
            from pyllama.tasks.distill import resume_text  # here, because the tasks take 10 MB
            plan = resume_text(plan, like)
        return show_training(plan, saved.tokenizer, log_steps, sample_tokens)


def show_training(plan: Plan, tokenizer: Tokenizer, log_steps: int, sample_tokens: int) -> int:
    """Run the plan with a progress display; returns the exit code, 0 when done or that of show_run()."""
    folder, state, best = plan.folder, plan.state, plan.best_so_far
    announce(f"{parameters_of(state)}; {len(plan.training):,} training tokens, {len(plan.validation):,} "
             f"validation tokens, vocabulary of {state.config.vocab_size:,}; steps {state.step} to "
             f"{plan.settings.max_steps} in {folder}", plan.settings.dtype)
    continues = objectives.continues(state.config)
    prompt = prompt_from(plan.training, tokenizer) if continues else ""
    tokens = 0 if console.quiet else sample_tokens
    code = show_run(plan, log_steps, sampler(state, prompt, tokenizer, tokens, lambda: plan.comm.stop))
    quality = f"best validation loss {best.best:.4f} at step {best.best_step}" if best.best_step else ""
    if code:
        show_stop(state.step, folder, quality)
        return code
    outcome = "done" if state.step == plan.settings.max_steps else "stopped early"
    then = command(folder, prompt) if continues else f"{command(folder, '', 'finetune')} --task TASK --data FILE"
    show_end(f"{outcome} at step {state.step}", quality, then=f"try `{then}`")
    return 0
