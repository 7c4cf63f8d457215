"""The training loop: a generator that yields one record a step.  The caller prints, saves and stops.

    state = start(config, settings)
    for record in train(state, tokens, settings):
        print(record)

The loss of a step is the mean over all its target tokens.  The rows of a step are split into shards, which run in
parallel.  A shard runs a few rows at a time, because the activations saved for a backward pass are then small.  Each
shard sums its own gradient, and the shards' gradients are added in order at the end.  Results therefore depend on the
numbers of shards and rows at a time, in the last bits, but not on the number of threads.

Random numbers depend on (seed, step) and the row in the step alone.  A saved and loaded state continues bit for bit.
"""
import contextlib
import contextvars
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pyllama import backend, machine, memory, params
from pyllama.device import on_host, read, require_dtype
from pyllama.errors import UserError, check_choices
from pyllama.low import widened
from pyllama.ops import cross_entropy
from pyllama.quantization import EncodedArray, decoded_tree
from pyllama.rng import Draw
from pyllama.text.tokens import Batch, Tokens, evaluation_windows, packed_evaluation_windows
from pyllama.training.diagnose import first_not_finite
from pyllama.training.optim import SGD, AdamW, Optimizer, clip_scale, matrix_slices
from pyllama.training.parallel import Communicator, Solo, share
from pyllama.training.schedule import SCHEDULES
from pyllama.training.stopping import unless_stopped
from pyllama.training.updates import Updates, follow
from pyllama.training.working import Working, rounded_tree, widened_tree

SOLO = Solo()
AT_ONCE = 2 ** 18               # numbers in a layer's input at a time: hides Python's overhead, keeps memory small


@dataclass(frozen=True)
class Settings(Updates):
    """How to train: batches, optimizer, learning rate, precision; not the data, nor the model.

    dtype is the precision of weights that are made or loaded for the run, and of the computation.  "bfloat16" computes
    with matrices and activations in bfloat16, but keeps the weights, their gradients and the optimizer's state in
    float32: see working.py.  pyllama.train() and pyllama.finetune() take float32 and float64 from the model they are
    given; a float32 model trains in bfloat16 if dtype says so.

    Raises UserError if a value is out of range, or if the numbers of the schedule do not fit together.

    >>> import pyllama
    >>> settings = pyllama.Settings(max_steps=100, warmup_steps=10, learning_rate=1e-3)
    >>> [f"{settings.rate(step):.1e}" for step in (0, 10, 99)]
    ['1.0e-04', '1.0e-03', '1.0e-04']
    """

    batch_size: int = 16                        # windows of text, or rows of a task, in a batch
    block_size: int = 128                       # context length in tokens
    packing: bool = False                       # keep the documents of a window apart: none sees or predicts another
    max_steps: int = 1000                       # optimizer steps in all
    learning_rate: float = 1e-3                 # peak learning rate
    warmup_steps: int | None = None             # steps of linear warmup (default: a tenth of max_steps, at most 100)
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"     # decay after the warmup
    min_lr: float | None = None                 # final learning rate (default: learning_rate / 10)
    lr_decay_steps: int | None = None           # step at which min_lr is reached (default: max_steps)
    decay_steps: int = 0                        # length of the final decay of wsd, in steps
    gradient_accumulation_steps: int = 1        # batches in an optimizer step
    weight_decay: float = 0.1                   # decoupled weight decay, on matrices only
    max_grad_norm: float = 1.0                  # clip the gradient to this norm; 0: no clipping
    label_smoothing: float = 0.0                # share of the target probability spread over all classes
    z_loss: float = 0.0                         # weight of the squared log-sum-exp in the loss
    optimizer: Literal["adamw", "sgd"] = "adamw"            # update rule
    beta1: float = 0.9                          # AdamW: decay of the mean gradient
    beta2: float = 0.99                         # AdamW: decay of the mean squared gradient
    adam_epsilon: float = 1e-8                  # AdamW: added to the denominator
    momentum: float = 0.9                       # SGD: momentum
    nesterov: bool = False                      # SGD: Nesterov momentum
    freeze: tuple[str, ...] = ()                # parameters to keep fixed: those at or below these dotted names
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"        # precision; bfloat16 keeps float32 weights
    seed: int = 1337                            # seed of weights, batches and dropout
    recompute: bool = False                     # recompute activations in the backward pass: less memory, more time
    micro_batch_size: int = 0                   # examples that a shard computes at once; 0: chosen by the model's size
    shards: int = 0                             # parts of a step computed in parallel; 0: one per core

    def __post_init__(self):
        check_choices(self)
        self.check_updates(self.freeze)
        for name in ("batch_size", "block_size", "gradient_accumulation_steps", "max_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("shards", "micro_batch_size", "weight_decay", "max_grad_norm", "z_loss", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must lie in 0 <= a < 1")
        if self.schedule == "wsd" and not self.decay_steps:
            raise UserError("schedule wsd falls in its last decay_steps; set decay_steps to 1 or more")
        if self.min_lr is None:
            object.__setattr__(self, "min_lr", self.learning_rate / 10)
        self.rate(0)                            # raises UserError if the schedule's numbers do not fit together
        if not self.shards:                     # set now and saved: the order of a sum depends on it, and a resumed
            cores = machine.cores()             # run must add in the same order on another machine
            object.__setattr__(self, "shards", min(cores, self.batch_size))

    @property
    def rows_per_step(self) -> int:
        """The number of rows in a step: windows of text, or examples of a task."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def master_dtype(self) -> str:
        """The precision of the weights that an update changes."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    @property
    def warmup(self) -> int:
        """The number of warmup steps."""
        return min(100, self.max_steps // 10) if self.warmup_steps is None else self.warmup_steps

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on settings that are probably not meant."""
        if self.warmup <= self.max_steps:
            return self.unreached(self.max_steps)
        share = self.max_steps / self.warmup
        return (f"the run ends in its warmup, at {share:.0%} of learning_rate: warmup_steps is {self.warmup} and "
                f"max_steps {self.max_steps}; make warmup_steps smaller", *self.unreached(self.max_steps))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return SCHEDULES[self.schedule](step, learning_rate=self.learning_rate, min_lr=float(self.min_lr or 0),
                                        warmup_steps=self.warmup, decay_steps=self.decay_steps,
                                        max_steps=self.lr_decay_steps or self.max_steps)


@dataclass
class State:
    """The state of training: what the next step depends on, except the data and the settings."""
    config: Any                                 # the model's configuration
    flat: np.ndarray                            # the parameters that train [N], one vector
    p: dict                                     # all parameters, a tree: views into flat, and the frozen ones
    trained: Set[str]                           # the names of the parameters that train
    optimizer: Optimizer                        # of flat
    working: Working                            # what the model computes with; update() it if flat is changed elsewhere
    step: int = 0                               # number of steps done
    whole: bool = True                          # False while a step updates the parameters
    loss: Callable | None = None                # called as the model's loss is; None: the model's
    adapters: Any = None                        # of a run that trains adapters: see adapting.Adapters

    @property
    def model(self) -> Any:
        """The model's module: see pyllama.models.ModelModule."""
        return self.config.model

    @property
    def tree(self) -> dict:
        """The parameters in one precision: see widened_tree()."""
        return widened_tree(self.p, self.flat.dtype)

    def gradients(self, flat: np.ndarray) -> dict:
        """The gradient flat [N] as a tree; params.NONE is in place of that of a frozen parameter."""
        return params.gradients(flat, self.p, self.trained)

    def load_optimizer(self, saved: dict[str, np.ndarray]) -> None:
        """Optimizer.load(), also of a state that covers the frozen parameters, as older versions saved it."""
        if self.flat.size < (whole := params.size(self.p)):
            saved = {name: params.flatten(params.over(a, self.p), self.trained)[0] if a.shape == (whole,) else a
                     for name, a in saved.items()}
        self.optimizer.load(saved)


class Record(NamedTuple):
    """The results of a step."""
    step: int                                   # number of steps done, including this one
    loss: float                                 # nats per token, mean over the step; NaN if it has no targets
    grad_norm: float                            # norm of the gradient before clipping
    lr: float                                   # learning rate
    tokens: int                                 # in this step, without the first of each row
    seconds: float                              # wall time
    evaluation: Any = None                      # after this step, if it is evaluated: see run.py


class Evaluation(NamedTuple):
    """The quality of a language model on a text."""
    loss: float                                 # nats per token
    perplexity: float                           # exp(loss)
    accuracy: float                             # share of tokens for which the most likely prediction is right
    tokens: int                                 # number predicted

    @property
    def rank(self) -> float:
        """The quantity that is lowest for the best checkpoint."""
        return self.loss

    def __str__(self):
        return f"{in_words(self.perplexity)}  next token {self.accuracy:.1%}"


def start(config, settings: Settings, tree: dict | None = None, like=None, trained: Set[str] | None = None) -> State:
    """A state at step 0.

    config    the model's configuration
    tree      the parameters; those that train are copied, the others are not; None: those of the model's init()
    like      an array on the device to train on; None: the host
    trained   the names of the parameters that train, plain arrays, beside which others may stay encoded; None: all but
              those that settings.freeze names, after the tree has been decoded

    Raises UserError if settings.freeze names no parameter or all of them, or if the device lacks settings.dtype.
    """
    p = tree or config.model.init(config, settings.seed, settings.master_dtype)
    if trained is None:
        p = decoded_tree(p)
        trained = {name for name, _ in params.leaves(p)} - params.chosen(p, settings.freeze)
    if not trained:
        raise UserError("freeze leaves no parameter to train; name fewer")
    if settings.dtype == "bfloat16":
        p = rounded_tree(p, but=trained)
    memory.release()                                    # of the initialization, whose arrays had other sizes
    flat, p = params.flatten(p, trained)
    if like is not None:
        require_dtype(settings.dtype, on_host(like))
        flat = np.asarray(flat, like=like)
        moved = (leaf if name in trained or isinstance(leaf, EncodedArray) else np.asarray(leaf, like=like)
                 for name, leaf in params.leaves(p))
        p = params.over(flat, params.rebuild(p, moved), trained)
    matrices = matrix_slices(p, trained)
    if settings.optimizer == "adamw":
        optimizer: Optimizer = AdamW(flat.size, flat.dtype, matrices=matrices, betas=(settings.beta1, settings.beta2),
                                     eps=settings.adam_epsilon, like=like)
    else:
        optimizer = SGD(flat.size, flat.dtype, matrices=matrices, momentum=settings.momentum,
                        nesterov=settings.nesterov, like=like)
    follow(optimizer, settings, settings.learning_rate, config, p, trained, like)
    return State(config, flat, p, trained, optimizer, Working(flat, p, settings.dtype, trained))


def train(state: State, source: Tokens, settings: Settings, comm: Communicator = SOLO) -> Iterator[Record]:
    """Train to settings.max_steps, in place, and yield a Record after each step.

    source   the data, such as Tokens or Examples: source.batch(settings, step) returns the Batch of a step
    comm     the processes that share the steps: see parallel.py

    Raises UserError if settings.freeze names parameters that train, and if the loss or the gradient is not finite: the
    state is then that before the step.  Run only one in a process: it sets the kernels' number of threads.
    """
    if settings.freeze and not state.trained.isdisjoint(params.chosen(state.p, settings.freeze)):
        raise UserError("freeze names parameters that this state trains; start it with the same settings")
    shards = settings.shards if on_host(state.flat) else 1          # a GPU runs the whole batch
    memory.release()                                    # of the setup, likewise
    flats = [np.zeros_like(state.flat) for _ in range(shards)]
    grads = [state.gradients(flat) for flat in flats]
    threads = backend.cpu.threads() if backend.cpu else machine.cores()
    state.optimizer.begin(state.flat)
    state.working.update()                              # the caller may have changed the parameters
    with ThreadPoolExecutor(min(threads, shards)) as pool, contextlib.ExitStack() as stack:
        stack.callback(memory.release)                  # of the steps, when the caller has had the last one

        def in_parallel(f, shards):
            contexts = [contextvars.copy_context() for _ in shards]         # with NumPy's allocator and errstate
            return pool.map(lambda context, shard: context.run(f, shard), contexts, shards)

        while state.step < settings.max_steps:
            begin = time.perf_counter()
            batch = source.batch(settings, state.step).on_device_of(state.flat)
            # Overflow is reported below, with the tensor in which it occurred.
            with np.errstate(over="ignore", invalid="ignore"), memory.arena(), machine.one_blas_thread(), \
                    backend.kernel_threads(max(1, threads // shards)), state.optimizer.recording(state.working.tree):
                loss = gradient(state, batch, settings, grads, in_parallel if shards > 1 else map, comm)
            sums = [loss, state.optimizer.sum_and_norm(flats)]
            if comm.size > 1:                                           # otherwise these are those of the whole step
                shared = np.stack([loss, np.zeros_like(loss) + comm.stop])
                comm.add(shared)
                comm.add(flats[0])
                sums = [shared[0], state.optimizer.sum_and_norm(flats[:1]), shared[1]]
            loss, norm, *stops = read(*sums)                            # a GPU's only wait in a step
            comm.stopped = any(stops)
            if not math.isfinite(loss) or not math.isfinite(norm):
                culprit = first_not_finite(state.working.tree,
                                           lambda: gradient(state, batch, settings, grads))            # noqa: B023
                raise UserError(f"the loss is {loss:.4g} and the gradient's norm {norm:.4g} in step {state.step + 1}: "
                                f"{culprit}; lower learning_rate or lengthen warmup_steps, from the start or "
                                f"from an earlier checkpoint (init_from)")
            lr = settings.rate(state.step)
            state.whole = False
            state.optimizer.step(state.flat, flats[0], lr, settings.weight_decay,
                                 clip_scale(norm, settings.max_grad_norm), state.working.copy)
            state.step += 1
            state.whole = True
            yield Record(state.step, loss if batch.targets else math.nan, norm, lr, batch.inputs["ids"][:, 1:].size,
                         time.perf_counter() - begin)


def gradient(state: State, batch: Batch, settings: Settings, grads: list[dict], apply=map, comm=SOLO):
    """The loss of this process's rows, divided by the whole batch's targets: 0-d, float64.  It does not wait for a GPU.

    grads    trees of State.gradients(), one a shard: each writes its gradient into its own; the step's is their sum
    apply    apply(f, shards) yields f(shard) for each; they may run in parallel
    """
    B, T = batch.inputs["ids"].shape
    window = max(1, T - 1) * state.config.hidden_size           # a language model reads all tokens but the last
    default = max(1, round(AT_ONCE / window)) if on_host(state.flat) else settings.batch_size
    at_once = settings.micro_batch_size or default
    loss = state.loss or state.model.loss

    def loss_of_piece(rows, tree):                  # a function, because it frees the activations on return
        value, back = loss(**{name: a[rows] for name, a in batch.inputs.items()},
                           p=state.working.tree, c=state.config, count=batch.targets, recompute=settings.recompute,
                           draw=Draw((settings.seed, "dropout", state.step), rows.start),
                           z_loss=settings.z_loss, label_smoothing=settings.label_smoothing)
        params.add(tree, back())
        return np.asarray(value, np.float64, like=state.flat)

    def loss_of(shard):
        rows, tree = shard
        state.optimizer.clear(tree)
        with params.adding(state.working.tree, tree, ahead=state.loss is None):     # another loss may scale its parts
            return sum(loss_of_piece(slice(start, min(start + at_once, rows.stop)), tree)
                       for start in range(rows.start, rows.stop, at_once))

    rows_here = share(B, comm)
    sizes = [len(part) for part in np.array_split(rows_here, len(grads))]
    shards = [rows_here[end - size:end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    losses = sum(apply(loss_of, list(zip(shards, grads, strict=True))))
    return np.asarray(losses, np.float64, like=state.flat)


@memory.arena()
@machine.one_blas_thread()
def mean_loss(p, c, batches: Iterable[Batch]) -> tuple[float, float]:
    """(loss, targets): the mean loss over all batches, in nats per target, and the number of targets.

    (nan, 0) if the batches have no targets.  Raises Stopped if the context is stopping().
    """
    total = targets = 0.0
    for batch in unless_stopped(batches):
        value, _ = c.model.loss(**batch.inputs, p=p, c=c, count=1, recompute=True)            # saves no activations
        total += float(value)
        targets += batch.targets
    return total / targets if targets else math.nan, targets


def in_words(perplexity: float) -> str:
    """The perplexity for a line of 80 columns."""
    return f"perplexity {perplexity:.2f}" if perplexity < 1000 else f"perplexity {perplexity:.4g}"


def perplexity(loss: float) -> float:
    """exp(loss), without overflow."""
    return math.exp(min(loss, 700.0))


@memory.arena()
@machine.one_blas_thread()
def evaluate(state: State, tokens: Tokens, settings: Settings, most: int | None = None,
             cut: Callable | None = None) -> Evaluation:
    """Loss, perplexity and next-token accuracy on tokens.

    most      evaluate the first `most` targets only; None: all
    cut       Cut.windows() of a cut of the tokens; None: the windows of training

    Raises UserError if no token is a target, and Stopped if the context is stopping().
    """
    tokens = tokens if most is None else tokens.between(0, min(most + 1, len(tokens)))
    logits = settings.block_size * state.config.vocab_size                  # of a row; at most 16 MiB at once
    window = settings.block_size * state.config.hidden_size
    rows = max(1, min(settings.batch_size, 2 ** 22 // logits, AT_ONCE // window))
    loss, right, count = 0.0, 0, 0
    cut = cut or (packed_evaluation_windows if settings.packing else evaluation_windows)
    for arrays in unless_stopped(cut(tokens, rows, settings.block_size)):
        ids, labels, *segments = (np.asarray(a, like=state.flat) for a in arrays)
        apart = {"segments": segments[0][:, :-1]} if segments else {}
        # recompute saves no activations: there is no backward pass
        z, _ = state.model.logits(ids[:, :-1], state.working.tree, state.config, recompute=True, **apart)
        z, target = widened(z.reshape(-1, z.shape[-1])), labels[:, 1:].reshape(-1)
        loss += float(cross_entropy(z, target, count=1)[0])
        right += int(np.sum(z.argmax(axis=-1) == target))
        count += int(np.sum(target != -100))
    if not count:                                           # as in packed documents of one token each
        raise UserError(f"none of the {len(tokens)} evaluation tokens follows another one of its document; give more "
                        f"text or raise eval_tokens")
    return Evaluation(loss / count, perplexity(loss / count), right / count, count)
