"""Views of a recorded step: loss per token, attention maps, gradient flow, units without a gradient, the update."""
import numpy as np

from pyllama.ops import cross_entropy
from pyllama.ops.softmax import log_sum_exp
from pyllama.study.explain.cells import block, number, numbers
from pyllama.study.explain.formulas import attention_maps, double
from pyllama.study.explain.nudges import Nudge, Weight
from pyllama.study.explain.recording import Call, Recording
from pyllama.study.explain.subject import Subject
from pyllama.study.explain.update import Update

UNITS = {"relu", "gelu", "tanh", "swiglu"}      # ops whose inputs are the units of a layer
MAP_ROOM = 120_000                              # numbers of all attention maps together


def norm(x) -> float | int | None:
    return number(float(np.linalg.norm(double(x).ravel())))


def norms(xs) -> list:
    """The norms of the arrays of floating-point numbers; None for others."""
    return [norm(x) if x is not None and np.asarray(x).dtype.kind == "f" else None for x in xs]


# --- loss per token ---------------------------------------------------------------------------------------------------

def token_losses(subject: Subject, recording: Recording) -> list[dict]:
    """A row for each target: the token before it (None if the model does not continue text), the target, its loss and
    probability, and the most likely token."""
    rows = [row for call in recording.calls for row in losses_of(call)]
    ids = subject.inputs["ids"][0, :-1]
    follows = subject.state.config.learns == "next token" and len(rows) == len(ids)
    return [{"after": token(subject, ids[n]) if follows else None, "target": token(subject, target),
             "loss": number(loss), "probability": number(probability), "best": token(subject, best)}
            for n, (target, loss, probability, best) in enumerate(rows)]


def losses_of(call: Call) -> list[tuple[int, float, float, int]]:
    """(target, loss, probability, most likely id) of each row of a cross-entropy that is not ignored."""
    if call.op.name not in ("cross_entropy", "linear_cross_entropy"):
        return []
    *arrays, t = call.inputs
    z = double(arrays[0]) @ double(arrays[1]).T if len(arrays) == 2 else double(arrays[0])
    options = {name: value for name, value in call.options.items() if name != "chunk"} | {"count": 1}
    kept = np.flatnonzero(t != options.get("ignore_index", -100))
    log_p = z - log_sum_exp(z)
    return [(int(t[n]), float(cross_entropy.forward(z[n:n + 1], t[n:n + 1], **options)[0]),
             float(np.exp(log_p[n, t[n]])), int(z[n].argmax())) for n in kept]


def token(subject: Subject, i: int) -> str:
    """A token as text; one that is not text as the vocabulary spells it."""
    text = subject.tokenizer.decode([int(i)])
    return text if text and "\ufffd" not in text else str(subject.tokenizer.rust.id_to_token(int(i)) or int(i))


# --- attention --------------------------------------------------------------------------------------------------------

def attention(recording: Recording) -> list[dict]:
    """The weights p of each attention and head, and their gradients dp = ∂loss/∂p: a block of at most 64 x 64."""
    calls = [(i, call) for i, call in enumerate(recording.calls) if call.op.name == "attention" and call.dys]
    heads = sum(call.inputs[0].shape[1] * call.inputs[0].shape[2] for _, call in calls)
    most = int(np.clip((MAP_ROOM / max(1, heads)) ** 0.5, 4, 64))
    return [one for i, call in calls for one in maps(i, call, most)]


def maps(number_of_call: int, call: Call, most: int) -> list[dict]:
    """A map for each head of the first sequence."""
    _, G, R, T, _ = call.inputs[0].shape
    p, dp, _ = (x[0].reshape(G * R, T, -1) for x in attention_maps(call))       # p is 0 where a key is not visible
    shown = block(np.abs(p * dp).max(axis=0), most)
    about = {"call": number_of_call, "shape": list(p.shape[1:]), "rows": shown.rows.tolist(),
             "columns": shown.columns.tolist()}
    return [about | {"head": head, "p": numbers(shown.of(p[head]), 3), "dp": numbers(shown.of(dp[head]), 3)}
            for head in range(G * R)]


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


# --- weights ----------------------------------------------------------------------------------------------------------

def updated(update: Update, weights: list[Weight], decay: float) -> dict:
    """The rule of the optimizer, and its numbers for these weights."""
    options = {name: numbers(value) if isinstance(value, tuple) else number(value)
               for name, value in update.optimizer.options().items()}
    rows = [{"weight": label(one), "before": number(update.before[one.name][one.place], 9),
             "gradient": number(update.gradient[one.name][one.place]),
             "decay": decay if one.name in update.decayed else 0,
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
