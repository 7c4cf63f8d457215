"""A LLaMA from the tokens to the loss: see loss() in pyllama/models/llama.py.

Arrays      ids, labels [B T], integers: each token, and the next one.
            The formulas leave B out.  l counts the L blocks.  They have one
            head; llama_block has more of them.
            M [V D] is a table of embeddings that is the output matrix, too.
            Of block l: γ, γ' [D]; Wq, Wk, Wv [K D], Wo [D K];
            Wa, Wu [F D], Wd [D F].  After the last block: γ'' [D].

Forward     M has two uses.  As two matrices:

            E_wd = M_wd
            H_wd = M_wd

            x is what a block gets, y is what it passes on.  The first block
            gets the embeddings:

            P = K / 2
            θ_i = base^(-(i - P [i ≥ P]) / P)
            A_tij = δ_ij cos(t θ_i) + ([i = j + P] - [j = i + P]) sin(t θ_i)
            σ(u) = 1 / (1 + e^-u)
            x_ltd = y_{l-1,t,d} + [l = 0] E_{ids(t),d}
            ρ_lt = (mean_d x_ltd² + ε)^-½
            n_ltd = γ_ld x_ltd ρ_lt
            q_lti = Σ_jd A_tij Wq_ljd n_ltd
            k_lti = Σ_jd A_tij Wk_ljd n_ltd
            v_lti = Σ_d Wv_lid n_ltd
            z_lts = Σ_i q_lti k_lsi / √K
            b_lts = [s ≤ t] exp(z_lts)
            o_lti = Σ_s b_lts v_lsi / Σ_s b_lts
            a_ltd = x_ltd + Σ_i Wo_ldi o_lti
            ρ'_lt = (mean_d a_ltd² + ε)^-½
            n'_ltd = γ'_ld a_ltd ρ'_lt
            c_ltf = Σ_d Wa_lfd n'_ltd
            u_ltf = Σ_d Wu_lfd n'_ltd
            h_ltf = c_ltf σ(c_ltf) u_ltf
            y_ltd = a_ltd + Σ_f Wd_ldf h_ltf

            The last norm, the scores of all words, and the loss:

            r_t = (mean_d y_{L-1,t,d}² + ε)^-½
            m_td = y_{L-1,t,d} r_t
            g_td = γ''_d m_td
            logit_tw = Σ_d H_wd g_td
            lse_t = log Σ_w exp(logit_tw)
            loss = mean_Bt (lse_t - logit_{t,labels(t)})

Backward    From the loss to the last block (see cross_entropy, rms_norm):

            dlogit_tw = (exp(logit_tw - lse_t) - [w = labels_t]) dloss / (B T)
            dg_td = Σ_w dlogit_tw H_wd
            dγ''_d = Σ_Bt dg_td m_td
            dm_td = γ''_d dg_td
            ω_td = r_t (dm_td - m_td mean_e m_te dm_te)

            From block to block.  What block l passes on is what the next one
            gets, and the last one passes ω back.  Each block turns the
            gradient of its y into that of its x (see llama_block):

            dy_ltd = dx_{l+1,t,d} + [l = L - 1] ω_td
            dx_ltd = Σ_se dy_lse ∂y_lse/∂x_ltd

            To both uses of the table:

            dH_wd = Σ_Bt dlogit_tw g_td
            dE_wd = Σ_Bt [w = ids_t] dx_0td

            Untied, E and H are two matrices with these two gradients.  Tied,
            they are one:

            dM_wd = dE_wd + dH_wd
"""
import numpy as np

from pyllama import params
from pyllama.models import llama
from pyllama.models.llama_config import LlamaConfig
from pyllama.study.derivation import Derivation, Step
from pyllama.study.derivations.llama_block import NAMES

SIZES = {"B": 2, "T": 3, "D": 2, "K": 4, "F": 3, "V": 4, "L": 2}


def gradients(names: dict, tied: bool) -> tuple[float, dict]:
    """(loss, gradients by name) of the model with these numbers."""
    c = LlamaConfig(vocab_size=SIZES["V"], hidden_size=SIZES["D"], intermediate_size=SIZES["F"],
                    num_hidden_layers=SIZES["L"], num_attention_heads=1, head_dim=SIZES["K"],
                    rope_theta=float(names["base"]), rms_norm_eps=float(names["ε"]), tie_word_embeddings=tied)
    p = {"model.embed_tokens.weight": names["E"], "model.norm.weight": names["γ''"]}
    p |= {f"model.layers.{number}.{theirs}": w
          for ours, theirs in NAMES.items() for number, w in enumerate(names[ours])}
    p |= {} if tied else {"lm_head.weight": names["H"]}
    ids = np.pad(names["ids"], ((0, 0), (0, 1)))                # the last token is only a label
    labels = np.pad(names["labels"], ((0, 0), (1, 0)))          # the first token is not
    value, back = llama.loss(ids, labels, params.named(llama.init(c, dtype="float64"), p), c)
    return value, dict(params.leaves(back(float(names["dloss"]))))


def code(names: dict) -> dict:
    """Both passes of the model, tied and untied."""
    value, tied = gradients(names, tied=True)
    same, untied = gradients(names, tied=False)
    assert value == same
    return {"loss": value, "dM": tied["model.embed_tokens.weight"], "dE": untied["model.embed_tokens.weight"],
            "dH": untied["lm_head.weight"], "dγ''": tied["model.norm.weight"]}


DERIVATION = Derivation(
    title="LLaMA, from tokens to the loss and back",
    source="pyllama.models.llama",
    symbols=False,
    arrays={"ids": "B T", "labels": "B T", "M": "V D", "γ": "L D", "γ'": "L D", "γ''": "D", "Wq": "L K D",
            "Wk": "L K D", "Wv": "L K D", "Wo": "L D K", "Wa": "L F D", "Wu": "L F D", "Wd": "L D F", "dloss": ""},
    letters={"t": "T", "s": "T", "d": "D", "e": "D", "j": "K", "i": "K", "f": "F", "l": "L", "w": "V"},
    sizes=SIZES,
    fixed=tuple(SIZES),
    implicit=("B",),
    integers={"ids": "V", "labels": "V"},
    constants={"ε": "", "base": ""},
    loss={"loss": "dloss"},
    code=code,
    steps=(
        Step("E_wd = M_wd", "The table from which tokens are read.  An untied model has two tables, `E` and `H`.",
             'x, embed_back = look_up(ids, p["embed_tokens"])'),
        Step("H_wd = M_wd", "The matrix that scores the words.",
             'return p["model"]["embed_tokens"] if c.tie_word_embeddings else p["lm_head"]'),
        Step("P = K / 2", "The number of pairs in a head."),
        Step("θ_i = base^(-(i - P [i ≥ P]) / P)", "Both halves of a head have the same frequencies."),
        Step("A_tij = δ_ij cos(t θ_i) + ([i = j + P] - [j = i + P]) sin(t θ_i)",
             "The rotation of position `t`, as in llama_block."),
        Step("σ(u) = 1 / (1 + e^-u)", "The logistic function."),
        Step("x_ltd = y_{l-1,t,d} + [l = 0] E_{ids(t),d}",
             "The first block gets the row of each token, and every other one what the block before it passes on.",
             'x, layers_back = through(x, p["layers"], run, recompute, c.share_layers)'),
        Step("ρ_lt = (mean_d x_ltd² + ε)^-½", "The first norm of a block."),
        Step("n_ltd = γ_ld x_ltd ρ_lt", "With its weights."),
        Step("q_lti = Σ_jd A_tij Wq_ljd n_ltd", "Queries, turned by their positions."),
        Step("k_lti = Σ_jd A_tij Wk_ljd n_ltd", "Keys, turned as well."),
        Step("v_lti = Σ_d Wv_lid n_ltd", "Values, which are not."),
        Step("z_lts = Σ_i q_lti k_lsi / √K", "The scores."),
        Step("b_lts = [s ≤ t] exp(z_lts)", "Later positions are hidden."),
        Step("o_lti = Σ_s b_lts v_lsi / Σ_s b_lts", "Softmax and the mean of the values in one line."),
        Step("a_ltd = x_ltd + Σ_i Wo_ldi o_lti", "The first residual."),
        Step("ρ'_lt = (mean_d a_ltd² + ε)^-½", "The second norm."),
        Step("n'_ltd = γ'_ld a_ltd ρ'_lt", "With its weights."),
        Step("c_ltf = Σ_d Wa_lfd n'_ltd", "The gate."),
        Step("u_ltf = Σ_d Wu_lfd n'_ltd", "What it lets through."),
        Step("h_ltf = c_ltf σ(c_ltf) u_ltf", "SwiGLU."),
        Step("y_ltd = a_ltd + Σ_f Wd_ldf h_ltf", "The second residual, and the block's output."),
        Step("r_t = (mean_d y_{L-1,t,d}² + ε)^-½", "A norm of what the last block passes on.",
             'x, norm_back = rms_normalize(x, p["norm"], c)'),
        Step("m_td = y_{L-1,t,d} r_t", "Before its weights."),
        Step("g_td = γ''_d m_td", "And with them."),
        Step("logit_tw = Σ_d H_wd g_td", "The score of a word is the inner product of its row and the last vector."),
        Step("lse_t = log Σ_w exp(logit_tw)", "What makes the scores into probabilities."),
        Step("loss = mean_Bt (lse_t - logit_{t,labels(t)})",
             "Minus the logarithm of the probability of the token that follows, the mean of all positions."),

        Step("dlogit_tw = (exp(logit_tw - lse_t) - [w = labels_t]) dloss / (B T)",
             "Probability minus target, and one share of the mean (see cross_entropy)."),
        Step("dg_td = Σ_w dlogit_tw H_wd", "`logit` is linear in `g`.", "dy, dw, _ = loss_back(dvalue)"),
        Step("dγ''_d = Σ_Bt dg_td m_td", "One weight for all positions."),
        Step("dm_td = γ''_d dg_td", "`m` reaches the loss through `g` alone."),
        Step("ω_td = r_t (dm_td - m_td mean_e m_te dm_te)", "The backward pass of the norm (see rms_norm).",
             "dx, d_norm = norm_back(dx)"),
        Step("dy_ltd = dx_{l+1,t,d} + [l = L - 1] ω_td",
             "`y_l` has one use: the next block, or the last norm.  So the gradients of the last block come first."),
        Step("dx_ltd = Σ_se dy_lse ∂y_lse/∂x_ltd",
             "The chain rule for one block as a function: `x_l` at one position is in `y_l` at this one and at all "
             "later ones.  The code never builds the table of these slopes: the block's own backward pass multiplies "
             "by it.",
             "dx, d_layers, _ = layers_back(dx)"),
        Step("dH_wd = Σ_Bt dlogit_tw g_td", "`logit` is linear in `H`, at all positions: every row gets a gradient."),
        Step("dE_wd = Σ_Bt [w = ids_t] dx_0td",
             "A row is read wherever its token stands.  Rows of tokens that are not in the batch get none.",
             'return {"embed_tokens": embed_back(drop_back(dx)), "layers": d_layers, "norm": d_norm}'),
        Step("dM_wd = dE_wd + dH_wd",
             "Both slopes, `∂E/∂M` and `∂H/∂M`, are 1: the gradients of two uses add.",
             'return with_head({"model": d_model}, d_model["embed_tokens"], d_head, c.tie_word_embeddings)'),
    ))
