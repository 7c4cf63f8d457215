"""Views of a recorded step: gradient flow, units without a gradient, an LSTM through time, the update."""
import numpy as np

from pyllama.study.explain.cells import number, numbers
from pyllama.study.explain.formulas import double
from pyllama.study.explain.nudges import Nudge, Weight
from pyllama.study.explain.recording import Recording
from pyllama.study.explain.update import Update

UNITS = {"relu", "gelu", "tanh", "swiglu"}      # ops whose inputs are the units of a layer


def norm(x) -> float | int | None:
    return number(float(np.linalg.norm(double(x).ravel())))


def norms(xs) -> list:
    """The norms of the arrays of floating-point numbers; None for others."""
    return [norm(x) if x is not None and np.asarray(x).dtype.kind == "f" else None for x in xs]


# --- gradient flow ----------------------------------------------------------------------------------------------------

def flow(recording: Recording, update: Update) -> list[dict]:
    """The norms of each parameter, its gradient and its update, and the calls that its gradient comes from."""
    return [{"name": name, "shape": list(w.shape), "norm": norm(w), "gradient": norm(update.gradient[name]),
             "largest": number(float(np.abs(update.gradient[name]).max(initial=0))),
             "update": norm(double(update.after[name]) - double(w)),
             "calls": [source.call for source in recording.reads[name]]} for name, w in update.before.items()]


def units(recording: Recording) -> list[dict]:
    """For each activation: its units, and how many of them pass no gradient back at any token."""
    found = []
    for i, call in enumerate(recording.calls):
        if call.op.name in UNITS and call.grads:
            units = call.inputs[0].shape[-1]
            alive = np.any(call.grads[0].reshape(-1, units), axis=0)
            found.append({"call": i, "units": units, "dead": units - int(np.sum(alive))})
    return found


def through_time(recording: Recording) -> list[dict]:
    """For each direction of each LSTM layer, by its recurrent matrix: norms at each step, in the order of the text.

    weight      of the step's part of the matrix's gradient, which is the sum over the steps
    """
    steps: dict[str, list[dict]] = {}
    for i, call in enumerate(recording.calls):
        if call.op.name == "lstm_cell":
            *_, recurrent = [source.call for source in call.reads[0]]          # a = x W_ihᵀ + h W_hhᵀ, in this order
            name, = [source.name for source in recording.calls[recurrent].reads[1]]
            state, cell = norms(call.outputs)
            state_gradient, cell_gradient = norms(call.dys)
            steps.setdefault(name, []).append({
                "call": i, "recurrent": recurrent, "state": state, "stateGradient": state_gradient, "cell": cell,
                "cellGradient": cell_gradient, "weight": norm(recording.calls[recurrent].grads[1])})
    return [{"name": name, "steps": found[::-1] if name.endswith("_reverse") else found}
            for name, found in steps.items()]


# --- weights ----------------------------------------------------------------------------------------------------------

def updated(update: Update, weights: list[Weight]) -> dict:
    """The rule of the optimizer, and its numbers for these weights."""
    options = {name: numbers(value) if isinstance(value, tuple) else number(value)
               for name, value in update.optimizer.options(update.optimizer.t).items()}
    rows = [{"weight": label(one), "before": number(update.before[one.name][one.place], 9),
             "gradient": number(update.gradient[one.name][one.place]),
             "decay": number(update.decay[one.name]),
             **{name: number(tree[one.name][one.place]) for name, tree in update.vectors.items()},
             "after": number(update.after[one.name][one.place], 9)} for one in weights]
    return {"rule": type(update.optimizer).__name__, "step": update.optimizer.t, "lr": number(update.lr),
            "norm": number(update.norm), "scale": number(update.scale), "options": options,
            "vectors": [*update.vectors], "rows": rows}


def nudged(nudges: list[Nudge], gradient: dict[str, np.ndarray]) -> list[dict]:
    """The losses, as pyllama computed them, and the gradient that predicts them."""
    return [{"weight": label(one.weight), "gradient": number(gradient[one.weight.name][one.weight.place]),
             "epsilons": numbers(one.epsilons), "losses": numbers(one.losses, 12)} for one in nudges]


def label(weight: Weight) -> str:
    """The weight as --nudge takes it."""
    return f"{weight.name}[{','.join(map(str, weight.place))}]"
