"""Rotary position embedding and the scalings of its frequencies, step by step: see pyllama/ops/rope.py."""
import numpy as np

from pyllama.ops import rope
from pyllama.rotary import frequencies, items
from pyllama.study.derivation import Derivation, Step

KEYS = {"O": "original_max_position_embeddings", "low": "low_freq_factor", "high": "high_freq_factor"}


def passes(names):
    """What both passes compute: of even rows in Hugging Face's layout, of odd rows in Meta's."""
    scaling = {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64,
               "attention_factor": float(names["m"])}
    options = {"base": float(names["base"]), "start": int(names["start"]), "scaling": scaling}
    found = {name: np.empty_like(names["a"]) for name in ("a'", "b'", "da", "db")}
    for interleaved in (False, True):
        rows = slice(int(interleaved), None, 2)
        x, dy = (joined(names[a][rows], names[b][rows], interleaved) for a, b in (("a", "b"), ("da'", "db'")))
        y, saved = rope.forward(x, interleaved=interleaved, **options)
        dx, = rope.backward(dy, *saved, interleaved=interleaved, **options)
        found["a'"][rows], found["b'"][rows] = pairs(y, interleaved)
        found["da"][rows], found["db"][rows] = pairs(dx, interleaved)
    return found


def joined(a, b, interleaved):
    return np.stack([a, b], axis=-1).reshape(*a.shape[:-1], -1) if interleaved else np.concatenate([a, b], axis=-1)


def pairs(x, interleaved):
    return (x[..., 0::2], x[..., 1::2]) if interleaved else np.split(x, 2, axis=-1)


def scaled(names, kind):
    """The frequencies that the code computes, and yarn's factor."""
    scaling = {"rope_type": kind} | {KEYS.get(name, name): float(value) for name, value in names.items()
                                     if np.ndim(value) == 0}
    found = {"θ'": frequencies(len(names["θ"]), float(names["base"]), scaling)}
    return found | ({"m": np.array(dict(items(scaling))["attention_factor"])} if kind == "yarn" else {})


def of_scaling(kind, title, steps, **options):
    first = Step("θ_k = base^(-k/P)", "The frequencies without a scaling.", extra=True)
    return Derivation(title=title, module="pyllama.ops.rope", case=kind, letters={"k": "P"}, sizes={"P": 6},
                      options={"base": 100, "factor": 4, **options}, code=lambda names: scaled(names, kind),
                      steps=(first, *steps))


ROTATION = Derivation(
    title="Rotary position embedding",
    module="pyllama.ops.rope",
    arrays={"a": "rows T P", "b": "rows T P", "da'": "rows T P", "db'": "rows T P"},
    letters={"t": "T", "s": "T", "k": "P"},
    sizes={"rows": 2, "T": 2, "P": 2},
    constants={"m": ""},
    options={"base": 100, "start": 3},
    loss={"a'": "da'", "b'": "db'"},
    code=passes,
    steps=(
        Step("θ_k = base^(-k/P)",
             "The first pair turns by one radian a position, each further one more slowly: some tell near positions "
             "apart, the others far ones.",
             "cos, sin = (np.asarray(table, like=x) for table in tables(T, K // 2, base, start, scaling, "
             "x.real.dtype))"),
        Step("A_tk = (start + t) θ_k",
             "The angle grows with the position, and row `t` stands at `start + t`."),
        Step("a'_tk = m (a_tk cos A_tk - b_tk sin A_tk)",
             "The pair `a_tk`, `b_tk` of two numbers of `x` is a point in the plane.  This is its first coordinate "
             "after the turn.  `m` is 1, except for yarn."),
        Step("b'_tk = m (a_tk sin A_tk + b_tk cos A_tk)",
             "And this the second.",
             "return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)"),
        Step("a'_tk² + b'_tk² = m² (a_tk² + b_tk²)",
             "A turn keeps the length: the mixed terms cancel, and `cos² A_tk + sin² A_tk` is 1.", extra=True),
        Step("c_tsk = a_tk a_sk + b_tk b_sk",
             "The inner product of pair `k` of two rows, before the turn.", extra=True),
        Step("g_tsk = a_tk b_sk - b_tk a_sk",
             "The area of the parallelogram of the two pairs, with a sign.", extra=True),
        Step("a'_tk a'_sk + b'_tk b'_sk = m² (c_tsk cos((t - s) θ_k) + g_tsk sin((t - s) θ_k))",
             "Multiplied out, `cos A cos B + sin A sin B` is `cos(A - B)`, and `sin A cos B - cos A sin B` is `sin(A - "
             "B)`.  This is why rows are turned: their inner product depends on the distance `t - s`, and `start` is "
             "gone.", extra=True),
        Step("∂a'_tk/∂a_tk = m cos A_tk",
             "The angle does not depend on `a_tk`, so `a'_tk` is linear in it.", extra=True),
        Step("∂b'_tk/∂a_tk = m sin A_tk",
             "So is `b'_tk`.", extra=True),
        Step("da_tk = m (da'_tk cos A_tk + db'_tk sin A_tk)",
             "`a_tk` is in both coordinates after the turn: the chain rule adds both ways.",
             "return (rotate(dy, cos, -sin, interleaved),)"),
        Step("db_tk = m (db'_tk cos A_tk - da'_tk sin A_tk)",
             "So is `b_tk`, with the slopes `-m sin A_tk` and `m cos A_tk`.  Together with the line above, this is the "
             "turn of the gradient by the angle `-A_tk`.",
             "return (rotate(dy, cos, -sin, interleaved),)"),
    ))

KEPT = "Between both, a part of the frequency is kept, and the rest is divided."

DERIVATION = (
    ROTATION,
    of_scaling("linear", "Frequencies of rope, divided", (
        Step("θ'_k = θ_k / factor",
             "All positions come closer together: a text that is `factor` times as long as those of training has their "
             "angles."),
        )),
    of_scaling("ntk", "Frequencies of rope with a larger base", (
        Step("θ'_k = (base factor^(P/(P-1)))^(-k/P)",
             "A larger base slows the slow pairs down more than the fast ones."),
        Step("θ'_0 = θ_0",
             "The fastest pair keeps its frequency: any number to the power 0 is 1.", extra=True),
        Step("θ'_{P-1} = θ_{P-1} / factor",
             "The slowest one is divided by `factor`: for this pair, `P/(P-1)` and `(P-1)/P` cancel.", extra=True),
        )),
    of_scaling("llama3", "Frequencies of rope, divided where they are low", (
        Step("λ_k = 2 π / θ_k",
             "The number of positions in which the pair makes a whole turn."),
        Step("h_k = min(max((O/λ_k - low) / (high - low), 0), 1)",
             "`O` is the length of the texts of training, so `O/λ_k` is the number of turns in them.  `h_k` is 0 up to "
             "`low` turns, 1 from `high` turns on, and linear between both: both are options."),
        Step("θ'_k = h_k θ_k + (1 - h_k) θ_k / factor",
             KEPT),
        Step("[λ_k < O/high] θ'_k = [λ_k < O/high] θ_k",
             "A pair with many turns has seen all angles.  It keeps its frequency.", extra=True),
        Step("[λ_k > O/low] θ'_k = [λ_k > O/low] θ_k / factor",
             "A pair with few turns would come to angles that it has not seen.  Its frequency is divided.",
             extra=True),
        ), O=64, low=1.5, high=4),
    of_scaling("yarn", "Frequencies of rope, divided from one pair to another", (
        Step("d(n) = P log(O / (2 π n)) / log base",
             "The pair that makes `n` turns in `O` positions, the length of the texts of training.  In general it is "
             "not an integer."),
        Step("O base^(-d(beta_slow)/P) / (2 π) = beta_slow",
             "The number of turns of a pair is `O θ_k / (2 π)`, and `d` solves this for `k`.", extra=True),
        Step("f = max(floor d(beta_fast), 0)",
             "The last pair that keeps its frequency.  The options are numbers of turns: `beta_fast` is many, "
             "`beta_slow` few."),
        Step("l = min(ceil d(beta_slow), 2 P - 1)",
             "The first one whose frequency is divided as a whole.  The bound `2 P - 1` is that of the paper's code; "
             "the last pair is `P - 1`."),
        Step("h_k = 1 - min(max((k - f) / (l - f), 0), 1)",
             "The share that is kept: 1 up to pair `f`, 0 from `l` on, and linear between both."),
        Step("θ'_k = h_k θ_k + (1 - h_k) θ_k / factor",
             KEPT),
        Step("[k ≤ f] θ'_k = [k ≤ f] θ_k",
             "These pairs have seen all angles.", extra=True),
        Step("[k ≥ l] θ'_k = [k ≥ l] θ_k / factor",
             "These would come to angles that they have not seen.", extra=True),
        Step("m = 0.1 log factor + 1",
             "A fit of the paper, not a derivation: all scores grow by `m²`, so that the weights stay sharp over more "
             "keys."),
        ), O=64, beta_fast=1.8, beta_slow=0.5),
)
