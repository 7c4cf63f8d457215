"""A training run in a folder: evaluate, log, save and stop by a policy, and resume bit for bit.

    RUN/log.jsonl         one line for each step, with the evaluation after it, if any
    RUN/checkpoints/      see checkpoint.py; RUN/latest and RUN/best name one each
    RUN/lock              names the process that writes to the run now: see lock.py
    RUN/data/             the text as tokens
    RUN/tensorboard/      event files, if RunPolicy.tensorboard is set
    RUN/metrics.json      of a task: see tasks/finetune.py; deleted when another checkpoint becomes the best
"""
import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama import __version__, params
from pyllama.device import host
from pyllama.errors import UserError
from pyllama.formats import peft_config
from pyllama.models.init import outlines
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.checkpoint import Checkpoint
from pyllama.training.lock import RunLock, locked
from pyllama.training.log import Log, NoLog, line_of, record_of
from pyllama.training.loop import SOLO, Record, Settings, State, evaluate, start, train
from pyllama.training.parallel import Communicator
from pyllama.training.stopping import Stopped, stopping

METRICS = "metrics.json"                            # of a task, measured at the end with the best checkpoint


@dataclass(frozen=True)
class RunPolicy:
    """When to evaluate, save and stop a run.  Raises UserError if a value is out of range."""

    eval_steps: int = 250                       # steps between evaluations
    eval_tokens: int | None = None              # evaluate on the first so many tokens (default: all)
    patience: int = 0                           # stop after so many evaluations without improvement; 0: never
    save_steps: int = 250                       # steps between checkpoints
    save_total_limit: int = 3                   # checkpoints to keep, besides the best
    tensorboard: bool = False                   # also write TensorBoard event files

    def __post_init__(self):
        for name, least in {"eval_steps": 1, "save_steps": 1, "save_total_limit": 1, "patience": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.eval_tokens is not None and self.eval_tokens < 1:
            raise UserError(f"eval_tokens is {self.eval_tokens}; it must be at least 1")


@dataclass
class BestSoFar:
    """The best evaluation so far.  Lower ranks are better; for text the rank is the loss.

    It is saved with each checkpoint, because early stopping must continue after a resume.
    """
    best: float = math.inf                      # its rank
    best_step: int = 0                          # its step
    stale: int = 0                              # number of evaluations since
    pending: dict | None = None                 # the log's line of a step whose evaluation was stopped


class Plan(NamedTuple):
    """The arguments of run(), in order: a run that is ready to start or to continue."""
    folder: Path | None                         # None: nothing is logged or saved
    state: State
    training: Any                               # the source of batches for loop.train()
    validation: Any                             # the data for evaluate()
    settings: Settings
    policy: RunPolicy
    about: dict                                 # what else a resume needs, JSON-serializable
    tokenizer_files: Mapping[str, str] | None   # {name: text}: see Tokenizer.files()
    best_so_far: BestSoFar
    evaluate: Callable
    comm: Communicator = SOLO
    lock: RunLock | None = None                 # of the folder; None: run() locks it

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user."""
        return (*self.settings.notes, *(self.lock.notes if self.lock else ()))


class Saved(NamedTuple):
    """A checkpoint of a run, with the settings that its trainer.json stores."""
    checkpoint: Checkpoint
    settings: Settings
    policy: RunPolicy
    best_so_far: BestSoFar
    about: dict
    tokenizer: Tokenizer
    lock: RunLock | None                        # of the folder

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user."""
        needed = "rows" if "task" in self.about else "documents"
        if needed in self.about or (needed == "documents" and self.about["text"]["split"] == "position"):
            return self.checkpoint.notes
        return (*self.checkpoint.notes, f"{self.checkpoint.folder} is of an older version, which kept no fingerprint "
                                        f"of its {needed}: this resume cannot check whether they have changed")


def run(folder: Path | None, state: State, training, validation, settings: Settings, policy: RunPolicy, about: dict,
        tokenizer_files: Mapping[str, str] | None = None, best_so_far: BestSoFar | None = None,
        evaluate: Callable = evaluate, comm: Communicator = SOLO, lock: RunLock | None = None) -> Generator[Record]:
    """Train to settings.max_steps, and yield a Record after each step, with its evaluation if there is one.

    folder          of the run; None: nothing is logged or saved
    training        the source of batches for loop.train()
    validation      the data for evaluate()
    about           what else a resume needs, JSON-serializable: saved with each checkpoint
    tokenizer_files {name: text} of the tokenizer's files; None: there is none
    evaluate        evaluate(state, validation, settings, most) returns a NamedTuple of numbers, among them the loss,
                    with a property `rank`, which is lower for better ones
    comm            the processes that share the steps; the first writes
    lock            of the folder; None: lock it until the generator ends

    Close the generator to stop after a step.  A checkpoint is written every save_steps, after an evaluation with a new
    best rank, and at the end: the last step, patience, close(), or KeyboardInterrupt unless it leaves parameters half
    updated.  An error does not write one: if the loss is not finite, the parameters were bad already.

    An evaluation stops between two batches when comm.stop is set, or by KeyboardInterrupt.  A resume makes up for it.

    Raises UserError as loop.train(), checkpoint.save() and RunLock do.
    """
    settings = replace(settings, warmup_steps=settings.warmup)     # a resume with more steps must not warm up again
    best_so_far, saved = best_so_far or BestSoFar(), state.step
    resumed = [record_of(best_so_far.pending)] if best_so_far.pending else []
    done = state.step - len(resumed)                    # the last step that is evaluated, if due, and logged
    folder = folder.absolute() if folder and comm.rank == 0 else None       # the caller may change the working folder

    def save(best=False):
        nonlocal saved
        saved = state.step                              # before saving: a save that failed is not repeated
        if folder is None or lock is None:
            return
        lock.check()
        log.sync()                                      # the log must not end before the checkpoint
        if best and "task" in about:                    # the metrics of the best checkpoint so far
            with contextlib.suppress(OSError):
                (folder / METRICS).unlink()
        adapters = state.adapters
        of_adapter = {"adapter": adapters.about} if adapters else {}
        checkpoint.save(folder, state.step, config=state.config.to_dict(), tensors=on_the_host(stored(state).items()),
                        adapter=adapters and peft_config.config_of(adapters.lora, adapters.about["base"], state.config),
                        tokenizer_files=tokenizer_files or {}, best=best,
                        optimizer=on_the_host(state.optimizer.state().items()),
                        keep=policy.save_total_limit,
                        trainer={"step": state.step, "settings": asdict(settings), "keeping": asdict(policy),
                                 "standing": asdict(best_so_far), "about": about | of_adapter, "versions": versions()})

    def out_of_patience():
        return policy.patience and best_so_far.stale >= policy.patience

    def evaluated(record: Record):
        """(evaluation, is it the best so far?) after a step for which one is due; (None, False) if it is stopped."""
        best_so_far.pending = line_of(record)
        try:
            with stopping(lambda: comm.stop and comm.size == 1):        # others would wait for this process
                evaluation = evaluate(state, validation, settings, policy.eval_tokens)
        except Stopped:
            return None, False
        better = evaluation.rank < best_so_far.best
        best_so_far.stale = 0 if better else best_so_far.stale + 1
        if better:
            best_so_far.best, best_so_far.best_step = evaluation.rank, record.step
        best_so_far.pending = None
        return evaluation, better

    with contextlib.ExitStack() as stack:
        lock = lock or stack.enter_context(locked(folder))
        log = Log(folder, done, policy.tensorboard) if folder else NoLog()
        stack.callback(log.close)
        try:
            for record in () if out_of_patience() else itertools.chain(resumed, train(state, training, settings, comm)):
                last, best_so_far.pending = record.step == settings.max_steps, None
                due = last or record.step % policy.eval_steps == 0
                evaluation, better = evaluated(record) if due else (None, False)
                if lock:
                    lock.check()
                log.write(record, evaluation)
                done = record.step
                if better or last or record.step % policy.save_steps == 0:
                    save(better)
                yield record._replace(evaluation=evaluation)
                if out_of_patience():
                    break
            if saved < state.step:
                save()
        except (GeneratorExit, KeyboardInterrupt):
            known = done == state.step or best_so_far.pending
            if saved < state.step and state.whole and known and not (lock and lock.inherited):
                save()
            raise


def stored(state: State) -> dict[str, Any]:
    """{name: parameter} of a checkpoint: all, or of a run that trains adapters those that train."""
    return {name: leaf for name, leaf in params.leaves(state.p) if not state.adapters or name in state.trained}


def versions() -> dict:
    """The versions of pyllama and NumPy, which a checkpoint stores."""
    return {"pyllama": __version__, "numpy": np.__version__}


def on_the_host(named) -> dict[str, np.ndarray]:
    """(name, array) pairs as a dict of arrays on the host."""
    return {name: host(a) for name, a in named}


@contextlib.contextmanager
def new_run(folder: Path | None, resume: str, writes: bool = True) -> Iterator[RunLock | None]:
    """Hold the lock of the folder of a new run.

    resume   how to continue a run, for the message
    writes   False: this process does not write

    Raises UserError if the folder already contains a run, or if another process writes to it.
    """
    with locked(folder, writes) as lock:
        if folder and (folder / "latest").exists():
            raise UserError(f"{folder} already contains a run; continue it with {resume}, or choose another out_dir")
        yield lock


@contextlib.contextmanager
def saved_run(folder: Path, max_steps: int | None = None, writes: bool = True) -> Iterator[Saved]:
    """The latest checkpoint of a run, to resume it.  Holds the run's lock.

    max_steps   the new last step; None: as before
    writes      False: this process does not write

    Raises UserError if the folder is not that of a run, if the run is past max_steps, or if another process writes to
    it.
    """
    with locked(folder, writes and (folder / "checkpoints").is_dir()) as lock:
        yield read_saved(folder, max_steps)._replace(lock=lock)


def read_saved(folder: Path, max_steps: int | None) -> Saved:
    """saved_run() without a lock."""
    if folder.resolve().parent.name == "checkpoints":
        raise UserError(f"{folder} is a single checkpoint; resume its run, {folder.resolve().parent.parent}")
    saved = checkpoint.load(folder)
    trainer = saved.trainer
    if "settings" not in trainer or saved.tokenizer_path is None:
        raise UserError(f"{folder} has a model but no training state; start a run from its weights (init_from)")
    settings = from_stored(Settings, trainer["settings"])
    settings = settings if max_steps is None else replace(settings, max_steps=max_steps)
    if settings.max_steps < saved.step:
        raise UserError(f"{folder} is at step {saved.step} already; make max_steps larger")
    return Saved(saved, settings, from_stored(RunPolicy, trainer["keeping"]),
                 from_stored(BestSoFar, trainer["standing"]), trainer["about"], Tokenizer.load(saved.tokenizer_path),
                 lock=None)


def changed_since(folder: Path, file: str | Path) -> str:
    """The message that a file which a resume needs is not what it was."""
    return (f"{file} has changed since {folder} was started; restore it, or start a new run from its weights "
            f"(init_from)")


def resumed(config, saved: Checkpoint, settings: Settings, like=None) -> State:
    """The state of a checkpoint, without drawing a model at random first.  like: see start().

    Raises UserError if the configuration does not fit the weights.
    """
    with outlines(len(saved.tensors)):
        outline = config.model.init(config, dtype=settings.master_dtype)
    state = start(config, settings, params.named(outline, saved.tensors, copy=False), like)
    restore(state, saved)
    return state


def restore(state: State, saved: Checkpoint) -> None:
    """Copy a checkpoint's parameters, optimizer state and step into a state of the same model and frozen parameters.

    Raises UserError if they do not fit.
    """
    tree = stored(state) if state.adapters else state.p         # an adapter's file has its own parameters alone
    flat, _ = params.flatten(params.named(tree, saved.tensors, copy=False), state.trained)
    state.flat[:] = np.asarray(flat, like=state.flat)
    state.working.update()
    state.load_optimizer(saved.optimizer)
    state.step = saved.step


def from_stored(cls, stored: dict):
    """A dataclass from its stored fields; fields that this version does not have are ignored."""
    return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})
