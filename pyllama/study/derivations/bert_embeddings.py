"""The embeddings of BERT, three tables in one sum: see embed() in pyllama/models/encoder.py.

Arrays      ids, types [B T], integers: each token, and the text that it is
            in; x [B T D] out.  The formulas leave B out.
            W [V D]  word_embeddings; P [T D]  position_embeddings;
            S [K D]  token_type_embeddings; γ, β [D]  LayerNorm

Forward     A row of each table.  That of the positions does not look at the
            tokens:

            e_td = W_{ids(t),d} + P_td + S_{types(t),d}
            c_td = e_td - mean_j e_tj
            ρ_t = (mean_d c_td² + ε)^-½
            m_td = c_td ρ_t
            x_td = γ_d m_td + β_d

Backward    The norm (see layer_norm):

            dγ_d = Σ_Bt dx_td m_td
            dβ_d = Σ_Bt dx_td
            dm_td = γ_d dx_td
            de_td = ρ_t (dm_td - mean_j dm_tj - m_td mean_j m_tj dm_tj)

            Each table gets the same gradient, where it was read:

            dW_vd = Σ_Bt [ids_t = v] de_td
            dS_kd = Σ_Bt [types_t = k] de_td
            dP_td = Σ_B de_td

            Added up, the rows of all tables have the same sum:

            Σ_v dW_vd = Σ_k dS_kd
            Σ_t dP_td = Σ_k dS_kd
"""
from pyllama import params
from pyllama.models import bert, encoder
from pyllama.study.derivation import Derivation, Step

NAMES = {"W": "word_embeddings.weight", "P": "position_embeddings.weight", "S": "token_type_embeddings.weight",
         "γ": "LayerNorm.weight", "β": "LayerNorm.bias"}


def code(names: dict) -> dict:
    """Both passes of the model's embeddings."""
    (V, D), T, K = names["W"].shape, len(names["P"]), len(names["S"])
    c = bert.BertConfig(vocab_size=V, hidden_size=D, num_attention_heads=1, num_hidden_layers=1,
                        max_position_embeddings=T, type_vocab_size=K, layer_norm_eps=float(names["ε"]))
    p = params.named(bert.init(c, dtype="float64")["bert"]["embeddings"],
                     {theirs: names[ours] for ours, theirs in NAMES.items()})
    x, back = encoder.embed(names["ids"], p, c, types=names["types"])
    grads = dict(params.leaves(back(names["dx"])))
    return {"x": x} | {f"d{ours}": grads[theirs] for ours, theirs in NAMES.items()}


DERIVATION = Derivation(
    title="The embeddings of BERT: token, position and type",
    source="pyllama.models.encoder",
    symbols=False,
    arrays={"ids": "B T", "types": "B T", "W": "V D", "P": "T D", "S": "K D", "γ": "D", "β": "D", "dx": "B T D"},
    letters={"t": "T", "d": "D", "j": "D", "v": "V", "k": "K"},
    sizes={"B": 2, "T": 3, "D": 3, "V": 4, "K": 2},
    implicit=("B",),
    integers={"ids": "V", "types": "K"},
    constants={"ε": ""},
    loss={"x": "dx"},
    code=code,
    steps=(
        Step("e_td = W_{ids(t),d} + P_td + S_{types(t),d}",
             "Three lookups.  Attention itself does not know where a token is: `P` tells it, and `S` says whether it "
             "is in the first or the second text.",
             "vectors, backs = zip(*(look_up(rows[name], p[name]) for name in rows), strict=True)"),
        Step("c_td = e_td - mean_j e_tj", "The norm of the sum.",
             'x, norm_back = layer_normalize(total(*vectors), p["LayerNorm"], c.layer_norm_eps)'),
        Step("ρ_t = (mean_d c_td² + ε)^-½", "One over the standard deviation."),
        Step("m_td = c_td ρ_t", "The normalized vector."),
        Step("x_td = γ_d m_td + β_d", "A scale and a shift for each column."),
        Step("dγ_d = Σ_Bt dx_td m_td", "`x` is linear in `γ`."),
        Step("dβ_d = Σ_Bt dx_td", "And in `β`."),
        Step("dm_td = γ_d dx_td", "`m` is in `x` with the factor `γ`."),
        Step("de_td = ρ_t (dm_td - mean_j dm_tj - m_td mean_j m_tj dm_tj)", "The backward pass of layer_norm.",
             "dx, d_norm = norm_back(drop_back(dx))"),
        Step("dW_vd = Σ_Bt [ids_t = v] de_td",
             "In a sum, each term has the slope 1, so each row that was read gets `de`.  A row that is read twice "
             "gets both (see embedding)."),
        Step("dS_kd = Σ_Bt [types_t = k] de_td",
             "The same with the types.  This table has two rows, so each gets the gradients of many positions."),
        Step("dP_td = Σ_B de_td", "Position `t` is read once in every text of the batch.",
             "return {name: table_back(dx) for name, table_back in zip(rows, backs, strict=True)}"),
        Step("Σ_v dW_vd = Σ_k dS_kd", "Both are the sum of `de` over all positions of all texts: every position reads "
             "one row of each table."),
        Step("Σ_t dP_td = Σ_k dS_kd", "And so is this."),
    ))
