"""The metadata of a GGUF file, each value with its type checked when it is asked for."""
import math
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.errors import UserError

LARGEST = 2**31 - 1                                 # of sizes and ids
NEEDED: Any = object()                              # stands for a default: the file must have the key


class Metadata:
    """The values of a file by key.  Every method raises UserError if the key is needed and absent, or its value odd."""

    def __init__(self, path: Path, values: dict[str, Any]):
        self.path, self.values = path, values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def below(self, prefix: str) -> dict[str, Any]:
        """The values whose keys begin with this prefix, without it."""
        return {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}

    def whole(self, key: str, default: Any = NEEDED, least: int = 1) -> Any:
        """An integer; of an array with one for each layer, that of all layers."""
        value = self.value(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0]
        if isinstance(value, np.ndarray):
            raise UserError(f"{self.path} has {key} = {value.tolist()!s:.60}, but all layers must have the same; give "
                            f"another model")
        if value is default or (isinstance(value, np.integer) and least <= value <= LARGEST):
            return value if value is None else int(value)
        raise self.odd(key, f"a whole number from {least} to {LARGEST:,}")

    def number(self, key: str, default: Any = NEEDED) -> float:
        """A finite number.  One of float32 becomes the shortest decimal that it is nearest to, such as 1e-05."""
        value = self.value(key, default)
        if value is default:
            return value
        if isinstance(value, np.number) and math.isfinite(value):
            return float(str(value))
        raise self.odd(key, "a number")

    def flag(self, key: str, default: Any = NEEDED) -> bool:
        """True or False."""
        value = self.value(key, default)
        if isinstance(value, bool):
            return value
        raise self.odd(key, "true or false")

    def text(self, key: str, default: Any = NEEDED) -> str:
        """A text."""
        value = self.value(key, default)
        if value is default or isinstance(value, str):
            return value
        raise self.odd(key, "a text")

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        value = self.value(key)
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return value
        raise self.odd(key, "a list of texts")

    def numbers(self, key: str, default: np.ndarray) -> np.ndarray:
        """An array of finite numbers, as many as the default has."""
        value = self.value(key, default)
        if isinstance(value, np.ndarray) and value.shape == default.shape and np.isfinite(value).all():
            return value
        raise self.odd(key, f"a list of {len(default):,} numbers")

    def id(self, key: str, below: int, default: int | None = None) -> int | None:
        """The id of a token."""
        value = self.whole(key, default, least=0)
        if value is not None and value >= below:
            raise UserError(f"{self.path} has {key} = {value}, outside the vocabulary of {below:,} tokens; convert the "
                            f"model again")
        return value

    def value(self, key: str, default: Any = NEEDED) -> Any:
        """The value, of whatever type."""
        if key not in self.values and default is NEEDED:
            raise UserError(f"{self.path} lacks {key}; convert the model again with a current llama.cpp")
        return self.values.get(key, default)

    def odd(self, key: str, wanted: str) -> UserError:
        """The error for a value that is not what it must be."""
        return UserError(f"{self.path} has {key} = {self.values[key]!s:.60}, but it must be {wanted}; convert the "
                         f"model again")
