"""The rows of a run, kept in its folder, so that a resume needs no other file.

    RUN/data/train.jsonl  dev.jsonl  test.jsonl
"""
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pyllama.errors import UserError
from pyllama.files import cure, make_folder, parse_json, rewrite
from pyllama.tasks.rows import Row
from pyllama.training.run import changed_since

PARTS = ("train", "dev", "test")


def save_rows(parts: dict[str, Sequence[Row]], folder: Path) -> dict[str, str]:
    """Write the rows of each part into a run's folder.  Returns the SHA-256 of each file, by part.

    Raises UserError if the folder contains other rows, or cannot be written.
    """
    def line(row):
        return json.dumps({"place": row.place, **row.values}, ensure_ascii=False) + "\n"

    # The name of a file, which is in each place, may have bytes that are not UTF-8: JSON's escapes stand for them.
    files = {folder / f"{part}.jsonl": "".join(map(line, rows)).encode("utf-8", "backslashreplace")
             for part, rows in parts.items()}
    try:
        make_folder(folder)
        for path, content in files.items():
            if path.exists() and path.read_bytes() != content:
                raise UserError(f"{path} already exists and would be overwritten; choose another out_dir")
        for path, content in files.items():
            rewrite(path, [content])
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; {cure(error)} or choose another out_dir"
                        ) from None
    return {path.stem: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def load_rows(run: Path, stored: dict[str, str] | None) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """(rows, SHA-256 of their file) of each part that save_rows() wrote.

    stored    the SHA-256 of each file when the run was started; None: unknown, in a run of 0.1.0

    Raises UserError if a file is missing, is damaged or has changed.
    """
    parts, digests = {}, {}
    for part in PARTS:
        path = run / "data" / f"{part}.jsonl"
        try:
            content = path.read_bytes()
            digests[part] = hashlib.sha256(content).hexdigest()
            if stored and digests[part] != stored[part]:
                raise UserError(changed_since(run, path))
            lines = [parse_json(line) for line in content.decode().split("\n") if line]
            parts[part] = [Row(line.pop("place"), line) for line in lines]
            if not lines and part != "test":
                raise ValueError("it has no rows")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is missing or damaged ({error}); restore it, or train again") from None
    return parts, digests
