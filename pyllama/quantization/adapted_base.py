"""The base of adapters in memory: the matrices that may have adapters can be stored in few bits.

This is QLoRA (Dettmers et al., 2023), with the blocks of GGUF in place of NF4.  The matrices are decoded in panels
where they are multiplied, in each pass anew.
"""
from typing import Any, Literal, get_args

from pyllama import params
from pyllama.errors import UserError
from pyllama.files import give_back
from pyllama.models import adapters
from pyllama.quantization.encoded import EncodedArray, encoded, fitting

BaseDtype = Literal["float32", "bfloat16", "q8_0", "q4_0"]
BASE_DTYPES = get_args(BaseDtype)
KINDS = {"bfloat16": "bf16"}                        # base_dtype -> storage format, where the names differ


def stored_base(tree: dict, config, kind: str | None, dtype: str = "float32") -> dict:
    """The base as it is kept in memory: matrices that may have adapters as kind, all other parameters plain.

    kind    a base_dtype; None: as they are
    dtype   of what is decoded
    """
    return params.rebuild(tree, (stored(name, leaf, config, kind, dtype) for name, leaf in params.leaves(tree)))


def named(outline: dict, tensors: dict, copy: bool, config, kind: str | None, dtype: str) -> dict:
    """The tree of params.named(), stored as stored_base() does.

    copy    False: the arrays may become parameters
    kind    a base_dtype: the tensors may be mapped from a file, of which only one at a time is in memory, and the
            result does not need the file; None: parameters stay as they are

    Raises UserError for another kind.
    """
    if kind is None:
        return params.named(outline, tensors, copy)
    if kind not in BASE_DTYPES:
        raise UserError(f"base_dtype is {kind!r}; it must be one of {', '.join(BASE_DTYPES)}")

    def keep(name, leaf):
        give_back(tensors[name])                    # the leaf is a copy
        return stored(name, leaf, config, kind, dtype)

    return params.named(outline, tensors, keep=keep)


def stored(name: str, leaf: Any, config, kind: str | None, dtype: str = "float32") -> Any:
    """A parameter of stored_base()."""
    if kind == "float32" or not adapters.is_adaptable(name, leaf, config):
        return leaf.decoded(dtype) if isinstance(leaf, EncodedArray) else leaf
    if kind is None:
        return leaf
    form = KINDS.get(kind, kind)
    if isinstance(leaf, EncodedArray):
        if leaf.kind == fitting(form, leaf.shape[0 if leaf.transposed else 1]):
            return leaf
        leaf = leaf.decoded(dtype)
    return encoded(name, leaf, form, config)
