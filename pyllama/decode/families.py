"""The families that have a plan, by the module that computes them dynamically.  To add one, add a line."""
from typing import Any

from pyllama.decode import gpt2, llama, target
from pyllama.decode.plan import Plan
from pyllama.models import MODELS

PLANS: dict[Any, Any] = {                       # module of the family -> its plan
    MODELS["llama"].model: llama.plan,
    MODELS["gpt2"].model: gpt2.plan,
    MODELS["transformer"].model: target.plan,
    MODELS["bart"].model: target.plan,
}


def has_plan(config: Any) -> bool:
    """Does the family have a plan, and does this head predict the next token?"""
    return config.model in PLANS and config.head in ("lm", "seq2seq")


def plan_of(config: Any, params: dict) -> Plan:
    """The plan of a model.  Raises KeyError unless has_plan(config)."""
    return PLANS[config.model](config, params)
