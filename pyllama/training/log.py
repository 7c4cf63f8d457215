"""The log of a run: a line of log.jsonl for each step, and TensorBoard's event files."""
import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from pyllama.errors import UserError, optional
from pyllama.files import cure, rewrite
from pyllama.training.loop import Record


class Log:
    """log.jsonl and TensorBoard's event files.

    step    the last step whose line stays; those of later steps, of an earlier run, are deleted
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool):
        path = folder / "log.jsonl"
        writer = optional("tensorboardX", "tensorboard").SummaryWriter if tensorboard else None
        try:
            lines = (json.dumps(line) + "\n" for line in read_log(folder) if line["step"] <= step)
            rewrite(path, map(str.encode, lines), only_writer=True)
            self.file, self.board = path.open("a"), None
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; {cure(error)} or choose another folder"
                            ) from None
        if writer:
            # The file name has the time in seconds.  Without the suffix, an immediate resume would overwrite the file.
            self.board = writer(str(folder / "tensorboard"), purge_step=step + 1, filename_suffix=f".{step}")

    def write(self, record: Record, evaluation):
        line = line_of(record)
        if evaluation:
            line |= {f"val_{name}": value for name, value in plain(evaluation).items()}
        with self.reporting():
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            deleted = os.fstat(self.file.fileno()).st_nlink == 0
        if deleted:
            raise UserError(f"{self.file.name} was deleted or replaced during the run; resume, which starts it again: "
                            f"the checkpoints are intact")
        if self.board:
            for name, value in line.items():
                if name != "step" and value is not None:        # an accuracy that was not measured
                    self.board.add_scalar(name, value, record.step)

    def sync(self):
        """Force the lines to the disk."""
        with self.reporting():
            os.fsync(self.file.fileno())

    @contextlib.contextmanager
    def reporting(self):
        """Raise UserError where an OSError is raised."""
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self.file.name}: {error.strerror}; {cure(error)} and resume: the "
                            f"checkpoints are intact") from None

    def close(self):
        with contextlib.suppress(OSError):              # a full disk was reported when the line was written
            self.file.close()
        if self.board:
            self.board.close()


class NoLog:
    """The log of a process that does not write."""

    def write(self, record: Record, evaluation):
        pass

    def sync(self):
        pass

    def close(self):
        pass


def plain(values: Any) -> dict[str, Any]:
    """The fields of a NamedTuple for JSON, which has no NaN: None."""
    return {name: None if value != value else value for name, value in values._asdict().items()}


def line_of(record: Record) -> dict[str, Any]:
    """The line of a step, without its evaluation."""
    return {name: value for name, value in plain(record).items() if name != "evaluation"}


def record_of(line: dict[str, Any]) -> Record:
    """The Record of a line."""
    fields: dict[str, Any] = {name: math.nan if value is None else value for name, value in line.items()}
    return Record(**fields)


def read_log(folder: Path) -> list[dict]:
    """The lines of log.jsonl, up to one that is incomplete, after a kill or a power cut, or is not that of a step."""
    path, lines = Path(folder) / "log.jsonl", []
    if path.exists():
        for text in path.read_text(errors="replace").split("\n"):
            try:
                line = json.loads(text)
                line["step"] = int(line["step"])
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                break
            lines.append(line)
    return lines
