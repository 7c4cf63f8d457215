"""What the chapter on the textbook's block says, computed or read while the site is built."""
from dataclasses import replace

import numpy as np
from docutils import nodes
from messages import plain, table, translated
from places import ROOT

from pyllama.models import textbook
from pyllama.models.textbook import TextbookConfig
from pyllama.study.derivation import Derivation, Step
from pyllama.study.running import Run

HEAD = ("x_td = E_{i(t),d}",
        "q_td = Σ_j Q_dj x_tj",
        "k_td = Σ_j K_dj x_tj",
        "v_td = Σ_j V_dj x_tj",
        "e_ts = exp(Σ_d q_td k_sd / √D)",
        "a_ts = e_ts / Σ_{u : u ≤ t} e_tu",
        "y_td = Σ_{s : s ≤ t} a_ts v_sd")
NETWORK = ("h_tf = max(0, Σ_d A_fd y_td + b_f)",
           "z_td = Σ_f C_df h_tf + c_d")
RESIDUAL = ("r_td = x_td + y_td",
            "h_tf = max(0, Σ_d A_fd r_td + b_f)",
            "z_td = r_td + Σ_f C_df h_tf + c_d")
SCORES = ("o_tw = Σ_d O_wd z_td + g_w",)
WEIGHTS = {"E": "W D", "Q": "D D", "K": "D D", "V": "D D", "A": "F D", "b": "F", "C": "D F", "c": "D", "O": "W D",
           "g": "W"}


def formulas(part: str) -> tuple[str, ...]:
    """The formulas of the block as drawn, or those that a part changes.  Raises ValueError if the code disagrees."""
    middle = RESIDUAL if part == "residual" else NETWORK
    run = Run(derivation((*HEAD, *middle, *SCORES), TextbookConfig(residual=middle is RESIDUAL)))
    if wrong := [outcome.wrong for outcome in run.steps() if outcome.wrong] or run.code():
        raise ValueError(f"the block of the textbook, {part}: {wrong}")
    return RESIDUAL if part == "residual" else (*HEAD, *NETWORK, *SCORES)


def derivation(lines: tuple[str, ...], c: TextbookConfig) -> Derivation:
    """The lines on random numbers, beside the scores that the model computes with the same weights."""
    def code(names: dict) -> dict:
        p = {"embedding": {"weight": names["E"]}, "output": {"weight": names["O"], "bias": names["g"]},
             "attention": {name: {"weight": names[name.upper()]} for name in ("q", "k", "v")},
             "feed_forward": {"in": {"weight": names["A"], "bias": names["b"]},
                              "out": {"weight": names["C"], "bias": names["c"]}}}
        return {"o": textbook.logits(names["i"][None], p, c)[0][0]}

    return Derivation(title="", steps=tuple(Step(line, "") for line in lines), symbols=False,
                      arrays={**WEIGHTS, "i": "T"},
                      letters={"t": "T", "s": "T", "u": "T", "d": "D", "j": "D", "f": "F", "w": "W"},
                      sizes={"T": 3, "D": 2, "F": 4, "W": 5}, integers={"i": "W"}, code=code)


# --- what each part changes -------------------------------------------------------------------------------------------

TEXT = np.array([[1, 4, 2, 0, 3]])
OTHER_ORDER = np.array([[4, 1, 2, 0, 3]])
OTHER_LAST = np.array([[1, 4, 2, 0, 2]])
PLAIN = TextbookConfig(vocab_size=5, hidden_size=32, intermediate_size=64, max_position_embeddings=8)
COLUMNS = "Part", "What is changed", "As drawn", "With the part"
CHANGES = {"positions": "the order of two tokens before the last",
           "residual": "the last token, while the head passes nothing on (its values are 0)",
           "norm": "the embeddings, which become 10 times as large"}


def changes(where: str, counted: bool) -> nodes.table:
    """The largest change of a score of the last token, without each part and with it; counted: compute it."""
    return table((translated(text, where) for text in COLUMNS),
                 ([translated(f"`{part}`", where), translated(change, where),
                   *(plain(f"{change_of(part, with_part):.4f}" if counted else "") for with_part in (False, True))]
                  for part, change in CHANGES.items()))


def change_of(part: str, with_part: bool) -> float:
    """The largest change of a score of the last token.  Raises ValueError if the chapter says something else."""
    c = replace(PLAIN, **{part: with_part})
    p = textbook.init(c, seed=0, dtype="float64")
    if part == "residual":
        p["attention"]["v"]["weight"][:] = 0
    before = last_scores(TEXT, p, c)
    if part == "norm":
        p["embedding"]["weight"] *= 10
    after = last_scores({"positions": OTHER_ORDER, "residual": OTHER_LAST}.get(part, TEXT), p, c)
    change = float(np.max(np.abs(after - before)))
    if (change > 0.01) != (with_part != (part == "norm")):
        raise ValueError(f"{part}, {with_part}: the scores change by {change}")
    return change


def last_scores(ids: np.ndarray, p: dict, c: TextbookConfig) -> np.ndarray:
    return textbook.logits(ids, p, c)[0][0, -1]


# --- what each part is worth ------------------------------------------------------------------------------------------

def measured(where: str, counted: bool) -> nodes.table:
    """The table of docs/textbook.md."""
    text = (ROOT / "docs" / "textbook.md").read_text("utf-8")
    head, _, *rows = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    return table((translated(cell.strip(), where) for cell in head),
                 ([translated(said(label.strip()), where), *map(plain, map(str.strip, numbers))]
                  for label, *numbers in rows), "numbers")


def said(label: str) -> str:
    """The label of a model: one that begins with + would be an item of a list when it is translated."""
    return label.replace("+ ", "with ")
