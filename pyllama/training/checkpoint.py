"""Checkpoints: folders that are complete or absent, and are verified byte by byte when they are read.

    RUN/latest  RUN/best             one line each, the name of a checkpoint: step-00000100
    RUN/checkpoints/step-00000100/   config.json  model.safetensors                     readable by Hugging Face
                                     tokenizer.json  tokenizer_config.json              too
                                     adapter_config.json  adapter_model.safetensors     of adapters, instead of a model
                                     optimizer.safetensors  trainer.json                to resume training
                                     checksums.json                                     size and SHA-256 of each file

A kill, a power cut or a full disk at any moment leaves the checkpoints that `latest` and `best` name complete, because:

(a) A checkpoint is written under a hidden name.  Each file and then the folder is forced to the disk before the rename.
(b) `best` and then `latest` are replaced, by rename, once the folder that they will name is on the disk.  Between the
    two, a resume from `latest` repeats the steps to the best one.
(c) An existing folder is never written to.  If a step is saved again with the same contents, the folder stays.  With
    other contents (a run resumed with other settings) it becomes step-00000100-2, and the old one is pruned.
(d) A pruned folder is hidden by a rename before its files are deleted.  A save deletes what a killed one left hidden.

Only one process at a time may save to a run: see lock.py.  The same state gives the same bytes.
"""
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.files import (
    DamagedFile,
    cure,
    digest_of,
    make_folder,
    read_json,
    rewrite,
    sync,
    to_json,
    unreadable,
    write,
)
from pyllama.formats import peft
from pyllama.formats.safetensors import read_tensors, to_safetensors

CONFIG, MODEL, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
OPTIMIZER, TRAINER, CHECKSUMS = "optimizer.safetensors", "trainer.json", "checksums.json"
NEEDED, OPTIONAL = {CONFIG, OPTIMIZER, TRAINER}, {TOKENIZER, TOKENIZER_SETTINGS}
WEIGHTS = {MODEL}, {peft.CONFIG, peft.MODEL}
PICKLED = {"pytorch_model*.bin": "a pickle of PyTorch", "*.pth": "a pickle of PyTorch", "*.pt": "a pickle of PyTorch",
           "*.ckpt": "a pickle", "tf_model.h5": "a model of TensorFlow", "flax_model.msgpack": "a model of Flax"}
NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")          # the step and, from the second on, the generation


class Checkpoint(NamedTuple):
    """The contents of a checkpoint folder.  A Hugging Face model has step 0 and an empty optimizer and trainer."""
    folder: Path
    step: int
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]                      # in their stored dtypes, writable
    optimizer: dict[str, np.ndarray]
    trainer: dict[str, Any]
    tokenizer_path: Path | None
    notes: tuple[str, ...] = ()                         # why this is not the latest checkpoint of the run
    adapter: dict[str, Any] | None = None               # adapter_config.json, if the tensors are those of an adapter


def save(run: str | Path, step: int, *, config: dict, tensors: dict[str, np.ndarray],
         tokenizer_files: Mapping[str, str], optimizer: dict[str, np.ndarray], trainer: dict, keep: int = 3,
         best: bool = False, adapter: dict | None = None) -> Path:
    """Save a checkpoint, make it the `latest` of the run, and prune older ones.  Returns its folder.

    config          JSON-serializable: config.json
    tensors         the parameters, by name
    tokenizer_files {name: text} of the tokenizer's files, from Tokenizer.files(); {}: there is none
    optimizer       the arrays of Optimizer.state(), by name
    trainer         JSON-serializable: what else a resume needs; the step is added
    keep            the number of checkpoints that stay, besides the best; those of later steps, to which a run resumed
                    from an older checkpoint has not returned yet, stay, too
    best            make it the `best` of the run, too
    adapter         adapter_config.json, if the tensors are those of an adapter: see formats/peft.py

    Raises UserError if it cannot be written (full disk, quota, size limit, permissions); earlier ones are intact.
    """
    if keep < 1:
        raise UserError(f"keep is {keep}; it must be at least 1, because the newest checkpoint always stays")
    run = Path(run)
    hidden = run / "checkpoints" / f".step-{step:08d}"
    files: dict[str, Iterable] = {
        CONFIG: [to_json(config)], TRAINER: [to_json(trainer | {"step": step})],
        **({peft.CONFIG: [to_json(adapter)], peft.MODEL: to_safetensors(peft.to_peft(tensors))} if adapter else
           {MODEL: to_safetensors(tensors)}), OPTIMIZER: to_safetensors(optimizer),
        **{name: [text.encode()] for name, text in tokenizer_files.items()}}
    try:
        make_folder(hidden.parent)
        for stale in hidden.parent.glob(".step-*"):
            shutil.rmtree(stale)
        hidden.mkdir()
        checksums = to_json({name: write(hidden / name, chunks) for name, chunks in files.items()})
        write(hidden / CHECKSUMS, [checksums])
        sync(hidden)
        folder = publish(hidden, checksums)
        if best:
            point(run, "best", folder)
        point(run, "latest", folder)
        prune(run, step, keep)
    except OSError as error:
        next_step = "resume: earlier checkpoints are intact" if (run / "latest").exists() else "start again"
        raise UserError(f"cannot save step {step} in {error.filename or run}: {error.strerror or error}; {cure(error)} "
                        f"and {next_step}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return folder


def load(path: str | Path, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint folder, the latest checkpoint of a run folder, or a Hugging Face model folder, sharded or not.

    mapped      the tensors of a model stay in their files: see read_tensors()

    Every checksum is verified.  If the latest checkpoint of a run is damaged, the newest undamaged one is read instead,
    and `notes` says so.  Raises UserError if there is no checkpoint, or a given one is damaged: with the one to use.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        return load_run(path, mapped)
    if any((path / name).exists() for name in (CHECKSUMS, TRAINER, OPTIMIZER)):
        try:
            return read(path, mapped)
        except DamagedFile as error:
            path = path.resolve()
            other = next((folder for folder in in_order(path.parent, path) if is_whole(folder)), None)
            raise UserError(f"{error}; " + (f"use {other}" if other else "there is no undamaged checkpoint beside it")
                            ) from error
    if (path / peft.CONFIG).is_file():
        adapter, tensors = peft.read(path)
        stored = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
        return Checkpoint(path, 0, stored, tensors, {}, {}, existing(path / TOKENIZER), adapter=adapter)
    if (path / CONFIG).is_file():
        return Checkpoint(path, 0, read_json(path / CONFIG), read_model(path, mapped), {}, {},
                          existing(path / TOKENIZER))
    raise UserError(f"{path} holds no checkpoint; give a run folder, one of its checkpoints, or a folder with "
                    f"{CONFIG} and {MODEL}")


def best(run: str | Path) -> Path:
    """The folder of the run's best checkpoint.  Raises UserError if there is none."""
    folder = named(Path(run), "best")
    if not folder or not folder.is_dir():
        raise UserError(f"{run} has no best checkpoint, because none has been evaluated yet; use the latest")
    return folder


def followed(path: str | Path) -> Path:
    """The checkpoint that RUN/latest or RUN/best names; any other path as it is."""
    path = Path(path)
    pointer = path.name in ("latest", "best") and path.is_file()
    return (named(path.parent, path.name) if pointer else None) or path


def in_run(folder: str | Path) -> bool:
    """Is this a checkpoint, or the place of one?"""
    folder = Path(folder).resolve()
    return folder.parent.name == "checkpoints" or any((folder / name).exists() for name in (CHECKSUMS, TRAINER,
                                                                                            OPTIMIZER))


# Writing

def publish(hidden, checksums) -> Path:
    """Rename the finished folder to an unused name of its step, or delete it if the newest one has the same contents.

    Returns the folder of the checkpoint.
    """
    folder = hidden.with_name(hidden.name.removeprefix("."))
    same = [other for other in in_order(hidden.parent) if order(other)[0] == order(folder)[0]]
    if same and is_whole(same[0]) and (same[0] / CHECKSUMS).read_bytes() == checksums:
        folder = same[0]
        shutil.rmtree(hidden)
    else:
        if same:
            folder = folder.with_name(f"{folder.name}-{order(same[0])[1] + 1}")
        os.rename(hidden, folder)
    sync(folder.parent)
    return folder


def point(run, which, folder):
    """Write the name of a checkpoint to RUN/latest or RUN/best."""
    rewrite(run / which, [f"{folder.name}\n".encode()], only_writer=True)


def prune(run, step, keep):
    """Delete all but the last `keep` steps up to this one and the best, and the older generations of each step."""
    reached = [folder for folder in in_order(run / "checkpoints") if order(folder)[0] <= step]
    newest = {order(folder)[0]: folder for folder in reversed(reached)}
    stay = {*list(newest.values())[-keep:], named(run, "best")}
    for folder in reached:
        if folder not in stay:
            hidden = folder.with_name(f".{folder.name}")
            os.rename(folder, hidden)
            shutil.rmtree(hidden)


# Listing

def order(folder):
    """(step, generation) from the name of a checkpoint folder; None for another name."""
    match = NAME.fullmatch(folder.name)
    return match and (int(match[1]), int(match[2] or 1))


def in_order(parent, preferred=None) -> list[Path]:
    """The checkpoints in this folder, newest first.  With a preferred one: that, older ones, then newer ones."""
    folders = sorted((f for f in parent.iterdir() if order(f) and f.is_dir()), key=order, reverse=True)
    if preferred and order(preferred):
        folders.sort(key=lambda folder: order(folder) > order(preferred))
    return folders


def named(run, which) -> Path | None:
    """The folder that RUN/latest or RUN/best names, which may not exist; None if the file names none."""
    try:
        folder = run / "checkpoints" / (run / which).read_text().strip()
    except (OSError, ValueError):
        return None
    return folder if order(folder) else None


def existing(path) -> Path | None:
    """The path if it is a file, else None."""
    return path if path.is_file() else None


# Reading

def load_run(run, mapped=False) -> Checkpoint:
    """The latest checkpoint of a run or, if that is damaged, the newest undamaged one.

    A process that trains may prune the latest one while it is read.  Then `latest` names another one, which is read.
    """
    while True:
        latest = named(run, "latest")
        try:
            saved = newest(run, latest, mapped)
        except UserError:
            if named(run, "latest") == latest:
                raise
        else:
            if not saved.notes or named(run, "latest") == latest:
                return saved


def newest(run, latest, mapped=False) -> Checkpoint:
    """The checkpoint that `latest` names or, if that is damaged, the newest undamaged one."""
    notes = []
    folders = in_order(run / "checkpoints", latest)
    if folders and latest not in folders:
        notes.append(f"{run / 'latest'} does not name an existing checkpoint")
    for folder in folders:
        try:
            saved = read(folder, mapped)
        except DamagedFile as error:
            notes.append(str(error))
        else:
            return saved._replace(notes=(*notes, f"{folder} is used instead") if notes else ())
    if notes:
        raise UserError(f"{run} holds no undamaged checkpoint: {'; '.join(notes)}; restore one, or train again")
    raise UserError(f"{run} holds no checkpoint yet; train until the first one is saved")


def read(folder, mapped=False) -> Checkpoint:
    """Verify and read a checkpoint folder of a run."""
    verify(folder)
    trainer = read_json(folder / TRAINER)
    adapter, tensors = peft.read(folder) if (folder / peft.CONFIG).is_file() else \
        (None, read_tensors(folder / MODEL, mapped))
    return Checkpoint(folder, trainer["step"], read_json(folder / CONFIG), tensors,
                      read_tensors(folder / OPTIMIZER, mapped), trainer, existing(folder / TOKENIZER), adapter=adapter)


def verify(folder):
    """Raise DamagedFile unless every file has the size and the SHA-256 in checksums.json."""
    path = folder / CHECKSUMS
    checksums = read_json(path)
    try:
        if not isinstance(checksums, dict) or \
                not any(NEEDED | own <= checksums.keys() <= NEEDED | own | OPTIONAL for own in WEIGHTS) or \
                to_json(checksums) != path.read_bytes():
            raise DamagedFile(f"{path} is damaged: it is not a list of checksums as written by pyllama")
        for name, recorded in checksums.items():
            path = folder / name
            with open(path, "rb") as file:
                actual = {"sha256": digest_of(file), "size": file.tell()}
            if actual != recorded:
                sizes = [d["size"] if isinstance(d, dict) and "size" in d else "no" for d in (actual, recorded)]
                raise DamagedFile(f"{path} is damaged: " + (f"it has {sizes[0]} bytes, but {sizes[1]} were written"
                              if sizes[0] != sizes[1] else f"its SHA-256 is not that in {CHECKSUMS}"))
    except OSError as error:
        raise unreadable(path, error) from error


def is_whole(folder) -> bool:
    """Does the checkpoint pass verify()?"""
    try:
        verify(folder)
    except UserError:
        return False
    return True


def read_model(folder, mapped=False) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face model folder, in one file or in shards."""
    if (folder / MODEL).is_file():
        return read_tensors(folder / MODEL, mapped)
    if not (folder / INDEX).is_file():
        raise UserError(no_model(folder))
    try:
        shard_of = read_json(folder / INDEX)["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (KeyError, TypeError, AttributeError):
        raise DamagedFile(f"{folder / INDEX} is damaged: it has no weight_map") from None
    if wrong := [shard for shard in shards if not is_file_name(shard)]:
        raise DamagedFile(f"{folder / INDEX} is damaged: {wrong[0]!r} is not the name of a file in its folder; "
                          f"download the model again")
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        tensors |= read_tensors(folder / shard, mapped)
    if missing := sorted(shard_of.keys() - tensors.keys()):
        raise UserError(f"{folder} lacks {missing[0]}, which {INDEX} lists; download the model again")
    return tensors


def is_file_name(name) -> bool:
    """Does this name a file in a folder, and not outside it?"""
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")


def no_model(folder) -> str:
    """The message that a folder has no weights that can be read, and what it has instead."""
    for pattern, kind in PICKLED.items():
        if found := sorted(folder.glob(pattern)):
            danger = ", which may run any program when it is opened" if "pickle" in kind else ""
            return (f"{found[0]} is {kind}{danger}, so it is not read; load it with transformers, and write {MODEL} "
                    f"with model.save_pretrained(FOLDER, safe_serialization=True)")
    return f"{folder} has neither {MODEL} nor {INDEX}; convert the model to safetensors"
