"""A teacher's scores on disk: written once, checked by fingerprints, continued if writing was stopped.

    DIR/teacher.bin     one record a token or a row, in order
    DIR/teacher.json    what they were made of; when they are complete, their checksum
"""
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError
from pyllama.files import DamagedFile, cure, digest_of, read_json, rewrite, sha256, to_json
from pyllama.low import widened
from pyllama.ops import top_scores
from pyllama.text.tokens import Batch, Tokens, window_positions
from pyllama.training.distilling import Teacher
from pyllama.training.lock import locked

FILE, SIDECAR = "teacher.bin", "teacher.json"
AT_ONCE = 2**20                                 # scores of a batch of windows
# What the cause of a difference is called in a message.
CAUSES = {"teacher": "another teacher", "data": "other data", "temperature": "another temperature",
          "top_k": "another top_k", "block_size": "another block_size", "packing": "another packing",
          "classes": "other classes"}


def kept(folder: Path, made_of: dict[str, Any], dtype: np.dtype, count: int,
         blocks: Callable[[int], Iterator[np.ndarray]], progress: Callable[[int], object] = lambda done: None
         ) -> np.ndarray:
    """The records of a folder, [count], mapped for reading; those that are missing are computed and written.

    made_of    what the records depend on, by the names in CAUSES
    blocks     blocks(done) yields arrays of records, from number `done` on; it may begin at any record of a block
    progress   called as progress(done), in records

    Raises UserError if the folder has records of something else, is damaged, cannot be written, or if another process
    writes there.
    """
    file, side = folder / FILE, folder / SIDECAR
    is_complete = side.exists() and "sha256" in read_json(side)         # then several processes may read
    with contextlib.nullcontext() if is_complete else locked(folder):
        stored = read_json(side) if side.exists() else {}
        if stored and (cause := difference(stored, made_of)):
            raise UserError(f"{folder} has the scores of {cause}; give another cache folder, or remove this one")
        if stored and not file.exists():
            raise DamagedFile(f"{file} is missing beside {side.name}; remove its folder, and the teacher's scores are "
                              f"computed again")
        try:
            if not stored:
                file.write_bytes(b"")                       # before `side`, beside which a file must be
                rewrite(side, [to_json(made_of)])
            if "sha256" not in stored:
                append(file, dtype, count, blocks, progress)
                with file.open("rb") as written:
                    rewrite(side, [to_json({**made_of, "sha256": digest_of(written)})])
            else:
                verify(file, stored["sha256"])
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror}; {cure(error)} or choose another folder"
                            ) from None
    return np.memmap(file, dtype, "r", shape=(count,))


def difference(stored: dict, made_of: dict[str, Any]) -> str:
    """What differs, in words; "" if nothing does."""
    return next((CAUSES[name] for name, value in made_of.items() if stored.get(name) != value), "")


def append(file: Path, dtype: np.dtype, count: int, blocks: Callable[[int], Iterator[np.ndarray]],
           progress: Callable[[int], object]) -> None:
    """Write the records that the file lacks.  A part of a record, which a stop may leave, is written again."""
    with file.open("r+b") as out, memory.arena(), machine.one_blas_thread():
        done = min(out.seek(0, 2) // dtype.itemsize, count)
        out.seek(done * dtype.itemsize)
        out.truncate()
        while done < count:
            for records in blocks(done):
                out.write(records.tobytes())
                out.flush()
                done += len(records)
                progress(done)


def verify(file: Path, expected: str) -> None:
    """Raise DamagedFile unless the file has this checksum."""
    with file.open("rb") as records:
        if digest_of(records) != expected:
            raise DamagedFile(f"{file} is damaged: it is not what was written; remove its folder, and the teacher's "
                              f"scores are computed again")


# --- the best words of each token of a text ---------------------------------------------------------------------------

def record(vocab_size: int, k: int) -> np.dtype:
    """The record of a token: the ids of the k best next tokens, their scores and that of all others."""
    return np.dtype([("ids", np.uint16 if vocab_size <= 2**16 else np.uint32, (k,)), ("scores", np.float32, (k + 1,))])


def top_blocks(teacher: Teacher, tokens: Tokens, block_size: int, k: int, temperature: float, packing: bool,
               done: int) -> Iterator[np.ndarray]:
    """Yield records of the tokens from number `done` on.

    The teacher reads windows of block_size that overlap by half, and scores what follows each token of the second
    half, and in the first window all.  So it has seen block_size / 2 tokens at least.
    """
    p, c = teacher
    step = max(1, block_size // 2)
    first = max(0, -(-(done + 1 - block_size) // step))         # the first window that scores the token `done`
    rows = max(1, AT_ONCE // (block_size * c.vocab_size))
    first -= first % rows                       # the same batches after a stop, and so the same bits
    count = 1 + max(0, -(-(len(tokens) - block_size) // step))
    for row in range(first, count, rows):
        starts = step * np.arange(row, min(row + rows, count))
        positions = starts[:, None] + np.arange(block_size)
        inside = np.minimum(positions, len(tokens) - 1)
        segments = {"segments": tokens.documents_at(inside)} if packing else {}
        z, _ = c.model.logits(tokens[inside], p, c, recompute=True, **segments)
        new = (positions >= starts[:, None] + np.where(starts, block_size - step, 0)[:, None]) & \
            (positions >= done) & (positions < len(tokens))
        yield best(widened(z[new]), k, temperature)


def best(z: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Records of scores z [N V], the best word first."""
    chosen = np.argpartition(-z, k, axis=-1)[:, :k]
    order = np.argsort(-np.take_along_axis(z, chosen, axis=-1), axis=-1, kind="stable")
    ids = np.take_along_axis(chosen, order, axis=-1)
    (y, rest), _ = top_scores(z, ids, temperature=temperature)
    records = np.empty(len(z), record(z.shape[-1], k))
    records["ids"], records["scores"] = ids, np.concatenate([y, rest[:, None]], axis=1)
    return records


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens with a teacher's scores of what follows each: a source of batches for loop.train()."""
    tokens: Tokens
    records: np.ndarray                         # [N] of record()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, positions):
        return self.tokens[positions]

    def batch(self, settings, step: int) -> Batch:
        """The windows of a step: see Tokens.batch."""
        batch = self.tokens.batch(settings, step)
        positions = window_positions(len(self.tokens), settings.rows_per_step, settings.block_size, settings.seed, step)
        found = self.records[positions[:, :-1]]
        scores = {"teacher_ids": found["ids"].astype(np.int64), "teacher_scores": found["scores"]}
        return batch._replace(inputs={**batch.inputs, **scores})


def scored(tokens: Tokens, load: Callable[[], Teacher], mark: str, size: int, folder: Path, settings, *, top_k: int,
           temperature: float, progress: Callable[[int], object] = lambda done: None) -> ScoredTokens:
    """The tokens with the scores of a folder, which are computed if they are missing.

    load    gives the teacher, if it is needed
    mark    fingerprint() of the teacher's parameters
    size    of the vocabulary

    Raises UserError as kept() does, and unless top_k is below the size of the vocabulary.
    """
    if top_k >= size:
        raise UserError(f"top_k is {top_k}, but the vocabulary has {size} tokens; make top_k smaller")
    digest = sha256()
    for begin in range(0, len(tokens), AT_ONCE):
        digest.update(tokens[begin:begin + AT_ONCE].tobytes())
    made_of = {"teacher": mark, "data": f"{digest.hexdigest()} {tokens.documents_fingerprint}", "top_k": top_k,
               "temperature": temperature, "block_size": settings.block_size, "packing": settings.packing}

    def blocks(done: int) -> Iterator[np.ndarray]:
        return top_blocks(load(), tokens, settings.block_size, top_k, temperature, settings.packing, done)

    return ScoredTokens(tokens, kept(folder, made_of, record(size, top_k), len(tokens), blocks, progress))
