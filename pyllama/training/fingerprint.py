"""A hash of a model's parameters, by which a run knows its base or its teacher again."""
from collections.abc import Collection, Iterator
from typing import Any

from pyllama import params
from pyllama.device import host
from pyllama.errors import UserError
from pyllama.files import sha256
from pyllama.quantization import EncodedArray

PIECE = 1 << 20                                     # numbers that are hashed at once


def fingerprint(tree: dict, but: Collection[str] = ()) -> str:
    """A hash of the parameters in float32, however they are stored.    but: names of those to leave out"""
    digest = sha256()
    for name, leaf in params.leaves(tree):
        if name in but:
            continue
        digest.update(f"{name}{leaf.shape}".encode())
        for piece in pieces(leaf):
            digest.update(host(piece).astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def pieces(leaf) -> Iterator[Any]:
    """The numbers of a parameter, in order, some at a time."""
    if isinstance(leaf, EncodedArray) and not leaf.transposed:
        yield from (rows for _, rows in leaf.panels())
        return
    flat = (leaf.decoded() if isinstance(leaf, EncodedArray) else leaf).reshape(-1)
    for begin_at in range(0, len(flat), PIECE):
        yield flat[begin_at:begin_at + PIECE]


def require_same(found: str, about: dict[str, Any]) -> None:
    """Raise UserError unless this is the fingerprint of the base."""
    if found != about["fingerprint"]:
        raise UserError(f"the base model is not the one that the adapter was trained on, which was {about['base']}; "
                        f"restore that one, or give its path")
