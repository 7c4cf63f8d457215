"""The widgets of a page: places that the scripts in _static/widgets fill, each with the numbers that it needs."""
import json
from typing import Any

import counts
import numpy as np

from pyllama.op import OPS

SCRIPTS = "formulas.js", "parts.js", "epsilon.js", "numbers.js", "turning.js", "masks.js", "path.js", "counting.js"
STEPS = 10.0 ** (np.arange(-2, -33, -1) / 2)                # from 1e-1 to 1e-16
WIDTH = 4                                                   # of the rows whose slope is measured
INPUTS = {"gelu": ["x"], "rms_norm": ["x", "w"], "softmax": ["x"], "swiglu": ["g", "u"]}
ROWS: dict[str, dict[str, list[float]]] = {
    "rms_norm": {"x": [1.0, 2.0, -0.5], "w": [1.0, 0.5, 2.0], "dy": [1.0, 0.0, 0.0]},
    "softmax": {"x": [0.0, 1.0, -1.0], "dy": [1.0, 0.0, 0.0]},
}
TURNED = {"q": [1.0] * 4 + [0.0] * 4, "k": [0.8] * 4 + [0.6] * 4, "base": 10000.0}       # four pairs
ATTENDED = {"q": [[1.0, 0.0], [0.5, 1.0], [-1.0, 0.5], [0.0, -1.0]],
            "k": [[1.0, 1.0], [0.0, 1.0], [1.0, -1.0], [0.5, 0.0]],
            "v": [[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0], [2.0, 0.5]],
            "dy": [[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [0.5, 0.5]],
            "mask": np.tri(4, dtype=int).tolist()}
DESCENT = {"start": [-2.0, 1.0], "betas": [0.9, 0.95], "eps": 1e-8, "steps": 40}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope": ("turning", TURNED), "attention": ("masks", ATTENDED), "adamw": ("path", DESCENT),
    "counting": ("counting", {"models": counts.letters()})}


def places(name: str) -> str:
    """The HTML of the widgets of an op or a derivation; "" if it has none."""
    parts = []
    if name in INPUTS:
        parts.append(place("epsilon", {"steps": STEPS.tolist(), "errors": errors(name)}))
    if name in ROWS:
        parts.append(place("numbers", {"op": name, "inputs": ROWS[name]}))
    if name in OTHERS:
        parts.append(place(*OTHERS[name]))
    return "".join(parts)


def place(widget: str, data: dict[str, Any]) -> str:
    script = f'<script type="application/json">{json.dumps(data)}</script>'
    return f'<div class="widget" data-widget="{widget}">{script}</div>'


def errors(name: str) -> dict[str, list[float]]:
    """kind of difference -> its relative error at each step: of the slope along a direction, against backward."""
    op, rng = OPS[name], np.random.default_rng(0)
    inputs, directions = rng.normal(size=(2, len(INPUTS[name]), WIDTH))
    dy = rng.normal(size=WIDTH)

    def loss(t):
        return np.sum(dy * op.forward(*(inputs + t * directions))[0])

    _, back = op(*inputs)
    slope = np.sum(back(dy) * directions)
    measured = {"forward": [(loss(h) - loss(0)) / h for h in STEPS],
                "central": [(loss(h) - loss(-h)) / (2 * h) for h in STEPS],
                "complex": [loss(1j * h).imag / h for h in STEPS]}
    return {kind: [float(abs(one / slope - 1)) for one in slopes] for kind, slopes in measured.items()}
