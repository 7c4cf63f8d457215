"""The training loop, as a generator: one record a step.  Printing, saving and stopping belong to the caller.

    state = start(config, settings)
    for record in train(state, tokens, settings):
        print(record)

The loss of a step is the mean over all its target tokens, however they are split.  The step is cut into shards, which
are computed side by side, each piece by piece: what a piece of a few windows keeps for its backward pass is small.
Each shard has a gradient of its own to add to, and these are added in their order at the end: shards and pieces matter
to the last bits, the number of threads does not.
Everything random depends on (seed, step) and the place in the step, so a state that is saved and loaded goes on as if
nothing had happened, bit for bit.
"""
import contextlib
import contextvars
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pyllama import backend, machine, memory, params
from pyllama.device import on_host, read
from pyllama.errors import UserError
from pyllama.ops import cross_entropy
from pyllama.rng import Draw
from pyllama.text.tokens import Batch, Tokens, evaluation_windows
from pyllama.training.diagnose import first_not_finite
from pyllama.training.optim import SGD, AdamW, Optimizer, clip_scale, global_norm, matrix_slices, sum_and_norm
from pyllama.training.parallel import Communicator, Solo, share
from pyllama.training.schedule import SCHEDULES

SOLO = Solo()
AT_ONCE = 2 ** 18               # numbers of a layer's input: enough to hide Python, few enough to keep memory small


@dataclass(frozen=True)
class Settings:
    """What a training run does, besides its text and the shape of its model."""

    batch_size: int = 16                        # windows of text in a micro-batch
    block_size: int = 128                       # tokens predicted in a window: the context length
    gradient_accumulation_steps: int = 1        # micro-batches in a step; the gradient is that of the whole
    shards: int = 0                             # parts of a step computed side by side; 0: one for each core
    micro_batch_size: int = 0                   # windows a shard computes at once; 0: by the size of the model
    max_steps: int = 1000                       # steps in all
    learning_rate: float = 1e-3                 # highest learning rate
    min_lr: float | None = None                 # learning rate at the end; None: a tenth of learning_rate
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"     # how it gets there
    warmup_steps: int = 100                     # steps in which the learning rate rises
    decay_steps: int = 0                        # last steps in which "wsd" falls
    lr_decay_steps: int | None = None           # step at which min_lr is reached; None: max_steps
    optimizer: Literal["adamw", "sgd"] = "adamw"            # the update rule; see optim.py
    beta1: float = 0.9                          # AdamW: memory of the gradient
    beta2: float = 0.99                         # AdamW: memory of its square
    adam_epsilon: float = 1e-8                  # AdamW: keeps the division finite
    momentum: float = 0.9                       # SGD: memory of the gradient
    nesterov: bool = False                      # SGD: look ahead along the momentum
    weight_decay: float = 0.1                   # on matrices only, decoupled from the gradient
    max_grad_norm: float = 1.0                  # clip the gradient to this norm; 0: off
    label_smoothing: float = 0.0                # share of the target spread over all tokens
    z_loss: float = 0.0                         # weight of the squared log-sum-exp in the loss
    freeze: tuple[str, ...] = ()                # parameters that stay as they are: those at or below these dotted names
    recompute: bool = False                     # forget activations and compute them again: less memory, more time
    dtype: Literal["float32", "float64"] = "float32"        # precision of weights and activations
    seed: int = 1337                            # of weights, batches and dropout

    def __post_init__(self):
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
        if not self.shards:                     # settled now and saved: a resumed run adds in the same order elsewhere;
            cores = machine.cores()             # not by the number of threads, which no bit depends on
            object.__setattr__(self, "shards", min(cores, self.batch_size))

    @property
    def rows_per_step(self) -> int:
        """Windows of text, or examples of a task, that the gradient of a step is taken over."""
        return self.batch_size * self.gradient_accumulation_steps

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return SCHEDULES[self.schedule](step, learning_rate=self.learning_rate, min_lr=float(self.min_lr or 0),
                                        warmup_steps=self.warmup_steps, decay_steps=self.decay_steps,
                                        max_steps=self.lr_decay_steps or self.max_steps)


@dataclass
class State:
    """All that the next step depends on, besides the tokens and the settings."""
    config: Any                                 # the model's configuration
    flat: np.ndarray                            # the parameters, one vector
    p: dict                                     # the tree of views into it
    optimizer: Optimizer
    step: int = 0                               # steps done

    @property
    def model(self) -> Any:
        """The module of the configuration: see pyllama.models.ModelModule."""
        return self.config.model


class Record(NamedTuple):
    """What happened in a step."""
    step: int                                   # steps done, this one included
    loss: float                                 # nats per token, mean over the step
    grad_norm: float                            # before clipping
    lr: float
    tokens: int                                 # in this step, but for the first of each row
    seconds: float
    evaluation: Any = None                      # after this step, where a run makes one: see run.py


class Evaluation(NamedTuple):
    loss: float                                 # nats per token
    perplexity: float                           # exp(loss)
    accuracy: float                             # share of tokens whose likeliest prediction is right
    tokens: int

    @property
    def rank(self) -> float:
        """What the best checkpoint has the lowest of."""
        return self.loss

    def __str__(self):
        return f"perplexity {self.perplexity:.2f}   next token {self.accuracy:.1%}"


def start(config, settings: Settings, tree: dict | None = None, like=None) -> State:
    """A state at step 0, from the given parameters or from the model's init, on the device that `like` is on."""
    flat, p = params.flatten(tree or config.model.init(config, settings.seed, settings.dtype))
    if like is not None:
        flat = np.asarray(flat, like=like)
        p = params.over(flat, p)
    still = params.chosen(p, settings.freeze)
    if len(still) == len(list(params.leaves(p))):
        raise UserError("freeze leaves no parameter to train; name fewer")
    where = matrix_slices(p, still)
    if settings.optimizer == "adamw":
        optimizer: Optimizer = AdamW(flat.size, flat.dtype, matrices=where, betas=(settings.beta1, settings.beta2),
                                     eps=settings.adam_epsilon, like=like)
    else:
        optimizer = SGD(flat.size, flat.dtype, matrices=where, momentum=settings.momentum, nesterov=settings.nesterov,
                        like=like)
    return State(config, flat, p, optimizer)


def train(state: State, source: Tokens, settings: Settings, comm: Communicator = SOLO) -> Iterator[Record]:
    """Advance the state to settings.max_steps, yielding a Record after each step.

    source.batch(settings, step) gives the Batch of a step: tokens have windows, a task has examples.
    comm     those who share the steps: see parallel.py

    Raises UserError, with the state as it was before the step, if the loss or the gradient is not finite.  One at a
    time in a process: it says how many threads the kernels use.
    """
    shards = settings.shards if on_host(state.flat) else 1          # a GPU's cores share one gradient
    flats = [np.zeros_like(state.flat) for _ in range(shards)]
    grads = [params.over(flat, state.p) for flat in flats]
    still = params.chosen(state.p, settings.freeze)
    frozen = [leaf for tree in grads for name, leaf in params.leaves(tree) if name in still]
    threads = backend.cpu.threads() if backend.cpu else machine.cores()
    memory.release()                                    # what it took to set up
    with ThreadPoolExecutor(min(threads, shards)) as pool:

        def side_by_side(f, shards):
            contexts = [contextvars.copy_context() for _ in shards]         # NumPy's allocator and errstate live there
            return pool.map(lambda context, shard: context.run(f, shard), contexts, shards)

        while state.step < settings.max_steps:
            begin = time.perf_counter()
            batch = source.batch(settings, state.step).beside(state.flat)
            # What overflows is reported below, with its place.
            with np.errstate(over="ignore", invalid="ignore"), memory.arena(), machine.one_blas_thread(), \
                    kernel_threads(max(1, threads // shards)):
                loss = gradient(state, batch, settings, grads, side_by_side if shards > 1 else map, comm)
            for leaf in frozen:
                leaf.fill(0)
            sums = [loss, sum_and_norm(flats)]
            if comm.size > 1:                                           # else these are the whole step's already
                shared = np.stack([loss, np.zeros_like(loss) + comm.stop])
                comm.add(shared)
                comm.add(flats[0])
                sums = [shared[0], global_norm(flats[0]), shared[1]]
            loss, norm, *stops = read(*sums)                            # the one wait of a step on a GPU
            comm.stopped = any(stops)
            if not math.isfinite(loss) or not math.isfinite(norm):
                culprit = first_not_finite(state.p, lambda: gradient(state, batch, settings, grads))    # noqa: B023
                raise UserError(f"the loss is {loss:.4g} and the gradient's norm {norm:.4g} in step {state.step + 1}: "
                                f"{culprit}; lower learning_rate or lengthen warmup_steps, from the start or "
                                f"with --init_from an earlier checkpoint")
            lr = settings.rate(state.step)
            state.optimizer.step(state.flat, flats[0], lr, settings.weight_decay,
                                 clip_scale(norm, settings.max_grad_norm))
            state.step += 1
            yield Record(state.step, loss, norm, lr, batch.inputs["ids"][:, 1:].size, time.perf_counter() - begin)


@contextlib.contextmanager
def kernel_threads(n: int):
    """Let the C kernels use n threads for a while: the shards have the cores already."""
    before = backend.cpu.threads() if backend.cpu else None
    if before:
        backend.cpu.set_threads(n)
    try:
        yield
    finally:
        if before:
            backend.cpu.set_threads(before)


def gradient(state: State, batch: Batch, settings: Settings, grads: list[dict], apply=map, comm=SOLO):
    """What this process's rows add to the mean loss over the batch: a float64 of no axes, not waited for.  Shard i
    writes its gradient into the tree grads[i]: the step's is their sum.

    apply(f, shards) yields f of each; the shards may run side by side.
    """
    many, wide = batch.inputs["ids"].shape
    window = max(1, wide - 1) * state.config.hidden_size        # a language model reads all tokens but the last
    usual = max(1, round(AT_ONCE / window)) if on_host(state.flat) else settings.batch_size
    at_once = settings.micro_batch_size or usual

    def loss_of_piece(rows, tree):                  # a function, so that the activations are gone before the next piece
        value, back = state.model.loss(**{name: a[rows] for name, a in batch.inputs.items()}, p=state.p,
                                       c=state.config, count=batch.targets, recompute=settings.recompute,
                                       draw=Draw((settings.seed, "dropout", state.step), rows.start),
                                       z_loss=settings.z_loss, label_smoothing=settings.label_smoothing)
        params.add(tree, back())
        return np.asarray(value, np.float64, like=state.flat)

    def loss_of(shard):
        rows, tree = shard
        for _, leaf in params.leaves(tree):
            leaf.fill(0)
        with params.adding(state.p, tree):
            return sum(loss_of_piece(slice(start, min(start + at_once, rows.stop)), tree)
                       for start in range(rows.start, rows.stop, at_once))

    mine = share(many, comm)
    sizes = [len(part) for part in np.array_split(mine, len(grads))]
    shards = [mine[end - size:end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    losses = sum(apply(loss_of, list(zip(shards, grads, strict=True))))
    return np.asarray(losses, np.float64, like=state.flat)


@memory.arena()
@machine.one_blas_thread()
def mean_loss(p, c, batches: Iterable[Batch]) -> tuple[float, float]:
    """(loss, targets): the mean loss in nats per target over all batches, and how many targets they have.

    It is (nan, 0) if the batches have none.
    """
    total = targets = 0.0
    for batch in batches:
        value, _ = c.model.loss(**batch.inputs, p=p, c=c, count=1, recompute=True)            # nothing kept
        total += float(value)
        targets += batch.targets
    return total / targets if targets else math.nan, targets


def perplexity(loss: float) -> float:
    """exp(loss), up to the largest number there is."""
    return math.exp(min(loss, 700.0))


@memory.arena()
@machine.one_blas_thread()
def evaluate(state: State, tokens: Tokens, settings: Settings, most: int | None = None) -> Evaluation:
    """Loss, perplexity and next-token accuracy over the tokens, or over the first `most` of them."""
    tokens = tokens if most is None else tokens.between(0, min(most + 1, len(tokens)))
    logits = settings.block_size * state.config.vocab_size                  # of a row: at most 16 MiB of them at once
    window = settings.block_size * state.config.hidden_size
    rows = max(1, min(settings.batch_size, 2 ** 22 // logits, AT_ONCE // window))
    loss, right, count = 0.0, 0, 0
    for ids, labels in evaluation_windows(tokens, rows, settings.block_size):
        ids, labels = (np.asarray(a, like=state.flat) for a in (ids, labels))
        z, _ = state.model.logits(ids[:, :-1], state.p, state.config, recompute=True)       # nothing kept
        z, target = z.reshape(-1, z.shape[-1]), labels[:, 1:].reshape(-1)
        loss += float(cross_entropy(z, target, count=1)[0])
        right += int(np.sum(z.argmax(axis=-1) == target))
        count += int(np.sum(target != -100))
    mean = loss / count
    return Evaluation(mean, perplexity(mean), right / count, count)
