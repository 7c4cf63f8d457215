"""A training run in a folder: evaluated, logged, saved and stopped as asked, and resumed as if never interrupted.

    RUN/log.jsonl         a line a step, with the validation figures where they were taken
    RUN/checkpoints/      see checkpoint.py; RUN/latest and RUN/best name one each
    RUN/data/             the text as tokens
    RUN/tensorboard/      event files, if asked for
"""
import contextlib
import json
import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama import __version__, params
from pyllama.device import host
from pyllama.errors import UserError, optional
from pyllama.files import rewrite
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.checkpoint import Checkpoint
from pyllama.training.loop import SOLO, Record, Settings, State, evaluate, train
from pyllama.training.parallel import Communicator


@dataclass(frozen=True)
class RunPolicy:
    """When a run is evaluated, saved and stopped."""

    eval_steps: int = 250                       # steps between evaluations on the validation text
    eval_tokens: int | None = None              # tokens in an evaluation, the first ones; None: all
    save_steps: int = 250                       # steps between checkpoints
    save_total_limit: int = 3                   # checkpoints kept, besides the best
    patience: int = 0                           # stop after so many evaluations that are no better; 0: never
    tensorboard: bool = False                   # write TensorBoard event files too

    def __post_init__(self):
        for name, least in {"eval_steps": 1, "save_steps": 1, "save_total_limit": 1, "patience": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.eval_tokens is not None and self.eval_tokens < 1:
            raise UserError(f"eval_tokens is {self.eval_tokens}; it must be at least 1")


@dataclass
class BestSoFar:
    """How the evaluations' rank stands, of a text the loss: saved with a checkpoint, so that stopping early survives a
    resume."""
    best: float = math.inf
    best_step: int = 0
    stale: int = 0                              # evaluations since the best one


class Plan(NamedTuple):
    """The arguments of run(), in its order: a run that is ready to begin, or to go on."""
    folder: Path | None                         # None: nothing is logged or saved
    state: State
    training: Any                               # what loop.train() draws its batches from
    validation: Any                             # what evaluate() takes
    settings: Settings
    policy: RunPolicy
    about: dict                                 # what a resume needs besides
    tokenizer_json: str | None
    best_so_far: BestSoFar
    evaluate: Callable
    comm: Communicator = SOLO


class Saved(NamedTuple):
    """What a checkpoint says of its run."""
    checkpoint: Checkpoint
    settings: Settings
    policy: RunPolicy
    best_so_far: BestSoFar
    about: dict
    tokenizer: Tokenizer


def run(folder: Path | None, state: State, training, validation, settings: Settings, policy: RunPolicy, about: dict,
        tokenizer_json: str | None = None, best_so_far: BestSoFar | None = None, evaluate: Callable = evaluate,
        comm: Communicator = SOLO) -> Generator[Record]:
    """Train to settings.max_steps, yielding a record a step, with the evaluation after it if one was due; close the
    generator to stop after a step.

    A checkpoint is written every save_steps, after an evaluation with a new best loss, and at the end, whether that is
    the last step, patience or close().  `about` is saved with it, for resuming.  An error saves nothing: a loss that is
    not finite tells that the parameters were bad a step ago, and KeyboardInterrupt may leave them half updated.
    evaluate(state, validation, settings, most) gives a NamedTuple of numbers, one of them the loss, with a rank: the
    lower the better.  Of several processes that share the steps the first writes.
    """
    best_so_far, saved = best_so_far or BestSoFar(), state.step
    writes = folder is not None and comm.rank == 0
    log = Log(folder, state.step, policy.tensorboard) if folder and writes else NoLog()

    def save(best=False):
        nonlocal saved
        saved = state.step                              # before it is done: what failed once is not tried again
        if folder is None or not writes:
            return
        checkpoint.save(folder, state.step, config=state.config.to_dict(), tensors=on_the_host(params.leaves(state.p)),
                        tokenizer_json=tokenizer_json, best=best,
                        optimizer=on_the_host(state.optimizer.state().items()),
                        keep=policy.save_total_limit,
                        trainer={"step": state.step, "settings": asdict(settings), "keeping": asdict(policy),
                                 "standing": asdict(best_so_far), "about": about, "versions": versions()})

    def tired():
        return policy.patience and best_so_far.stale >= policy.patience

    try:
        for record in () if tired() else train(state, training, settings, comm):
            last = record.step == settings.max_steps
            evaluation, better = None, False
            if last or record.step % policy.eval_steps == 0:
                evaluation = evaluate(state, validation, settings, policy.eval_tokens)
                better = evaluation.rank < best_so_far.best
                best_so_far.stale = 0 if better else best_so_far.stale + 1
                if better:
                    best_so_far.best, best_so_far.best_step = evaluation.rank, record.step
            log.write(record, evaluation)
            if better or last or record.step % policy.save_steps == 0:
                save(better)
            yield record._replace(evaluation=evaluation)
            if tired():
                break
        if saved < state.step:
            save()
    except GeneratorExit:
        if saved < state.step:
            save()
        raise
    finally:
        log.close()


def versions() -> dict:
    return {"pyllama": __version__, "numpy": np.__version__}


class Log:
    """log.jsonl, and TensorBoard's event files.  What an earlier run wrote after its last checkpoint is cut off."""

    def __init__(self, folder: Path, step: int, tensorboard: bool):
        path = folder / "log.jsonl"
        kept = (json.dumps(line) + "\n" for line in read_log(folder) if line["step"] <= step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            rewrite(path, map(str.encode, kept), only_writer=True)
            self.file, self.board = path.open("a"), None
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; make room, or choose another folder") from None
        if tensorboard:
            tensorboard_x = optional("tensorboardX", "tensorboard")
            # The suffix, for the name has the time in seconds alone: a run resumed at once would overwrite its file.
            self.board = tensorboard_x.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1,
                                                     filename_suffix=f".{step}")

    def write(self, record: Record, evaluation):
        line = {name: value for name, value in record._asdict().items() if name != "evaluation"}
        line |= ({f"val_{k}": v for k, v in evaluation._asdict().items()} if evaluation else {})
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.file.name}: {error.strerror}; make room and resume, the checkpoints "
                            f"are intact") from None
        if self.board:
            for name, value in line.items():
                if name != "step" and value is not None:        # an accuracy that was not taken
                    self.board.add_scalar(name, value, record.step)

    def close(self):
        with contextlib.suppress(OSError):              # a full disk was reported when the line was written
            self.file.close()
        if self.board:
            self.board.close()


class NoLog:
    """What a process that does not write has in place of a Log."""

    def write(self, record: Record, evaluation):
        pass

    def close(self):
        pass


def read_log(folder: Path) -> list[dict]:
    """The lines of log.jsonl, up to the first that a kill or a power cut left unfinished."""
    path, lines = Path(folder) / "log.jsonl", []
    if path.exists():
        for line in path.read_text(errors="replace").split("\n"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


def on_the_host(named) -> dict[str, np.ndarray]:
    return {name: host(a) for name, a in named}


def saved_run(folder: Path, max_steps: int | None = None) -> Saved:
    """The latest checkpoint of a run, to train on from.  max_steps: a new last step.

    Raises UserError if the folder holds no run, or the run is past max_steps already.
    """
    if folder.resolve().parent.name == "checkpoints":
        raise UserError(f"{folder} is one checkpoint; resume the run that holds it, {folder.resolve().parent.parent}")
    saved = checkpoint.load(folder)
    trainer = saved.trainer
    if "settings" not in trainer or saved.tokenizer_path is None:
        raise UserError(f"{folder} holds a model but no training to go on with; start one with --init_from {folder}")
    settings = from_stored(Settings, trainer["settings"])
    settings = settings if max_steps is None else replace(settings, max_steps=max_steps)
    if settings.max_steps < saved.step:
        raise UserError(f"{folder} is at step {saved.step} already; give a max_steps above it")
    return Saved(saved, settings, from_stored(RunPolicy, trainer["keeping"]),
                 from_stored(BestSoFar, trainer["standing"]), trainer["about"], Tokenizer.load(saved.tokenizer_path))


def restore(state: State, saved: Checkpoint) -> None:
    """Put a checkpoint's parameters, optimizer and step into a state of the same shape."""
    flat, _ = params.flatten(params.named(state.p, saved.tensors))
    state.flat[:] = np.asarray(flat, like=state.flat)
    state.optimizer.load(saved.optimizer)
    state.step = saved.step


def from_stored(cls, stored: dict):
    """A dataclass from its stored fields; those that a later version dropped are left out."""
    return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})
