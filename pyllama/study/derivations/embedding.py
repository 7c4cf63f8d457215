"""The embedding, step by step: see pyllama/ops/embedding.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Table lookup",
    module="pyllama.ops.embedding",
    letters={"b": "B", "t": "T", "d": "D", "v": "V"},
    sizes={"B": 2, "T": 2, "D": 2, "V": 3},
    implicit=(),
    integers={"ids": "V"},
    steps=(
        Step("y_btd = w_vd,   v = ids_bt",
             "The vector of a token is the row of the table that its id names.",
             "return w[ids], (ids, w)"),
        Step("O_btv = [ids_bt = v]",
             "One row of `O` for each position, with a single 1: in the column of the token."),
        Step("y_btd = Σ_v O_btv w_vd",
             "The 1 picks the row, and the zeros drop all others.  So a lookup is a linear map of the table."),
        Step("∂y_btd/∂w_vd = O_btv",
             "One term of the sum has `w_vd`, with this factor.", extra=True),
        Step("dw_vd = Σ_bt O_btv dy_btd",
             "The chain rule sums over all positions, since the table serves them all."),
        Step("= Σ_{b,t : ids(b,t) = v} dy_btd",
             "Only the positions of token `v` have a 1.  So the code adds their `dy` and never builds `O`.",
             "np.add.at(dw, ids, dy)"),
    ))
