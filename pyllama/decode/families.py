"""The families that have a plan, by the module that computes them dynamically.  To add one, add a line."""
from typing import Any

import numpy as np

from pyllama import backend
from pyllama.decode import gpt2, llama, target
from pyllama.decode.plan import Plan
from pyllama.models import MODELS
from pyllama.params import leaves
from pyllama.quantization import EncodedArray, is_quantized

PLANS: dict[Any, Any] = {                       # module of the family -> its plan
    MODELS["llama"].model: llama.plan,
    MODELS["gpt2"].model: gpt2.plan,
    MODELS["transformer"].model: target.plan,
    MODELS["bart"].model: target.plan,
}


def has_plan(config: Any, params: dict) -> bool:
    """Can a plan run these parameters: a family that has one, a head that predicts tokens, arrays for the C kernels?

    The arrays are float32 or float64, all of one precision, on the host; beside EncodedArrays they are float32.
    """
    if config.model not in PLANS or config.head not in ("lm", "seq2seq"):
        return False
    plain = [leaf for _, leaf in leaves(params) if not isinstance(leaf, EncodedArray)]
    if is_quantized(params):
        plain.append(np.empty(0, np.float32))
    return backend.cpu is not None and backend.kernels_for(plain) is backend.cpu


def plan_of(config: Any, params: dict) -> Plan:
    """The plan of a model.  Raises KeyError if the family has none."""
    return PLANS[config.model](config, params)
