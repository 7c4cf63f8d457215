"""The command merge: an adapter and its base as one model."""
import warnings
from pathlib import Path

from pyllama import memory, pretrained
from pyllama.cli.output import console
from pyllama.errors import UserError


def merge(src: Path, dst: Path, /, base: Path | None = None, force: bool = False) -> int:
    """Write an adapter and its base model as one model, which needs neither of them.

    It computes what both compute together, without their extra products.

    Args:
        src: a run of adapters, one of its checkpoints, or an adapter folder of PEFT
        dst: folder to write, in Hugging Face's format, or a file NAME.gguf
        base: the base model, if it is not where the adapter says
        force: replace a GGUF file if it exists
    """
    memory.install()
    if base is None:
        model = pretrained.load(src)
        if not model.adapters:
            raise UserError(f"{src} is a whole model, so there is nothing to merge; give a run of adapters or an "
                            f"adapter folder of PEFT")
    else:
        model = pretrained.load(base)
        model.add_adapter("default", src)
        model.use("default")
    for note in model.notes:
        console.print(note)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.save(dst, force)
    for warning in told:
        console.print(str(warning.message))
    console.print(f"wrote {dst}")
    return 0
