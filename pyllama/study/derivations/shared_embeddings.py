"""One table for source, target and scores: see hidden() and logits() in pyllama/models/transformer.py.

Arrays      source [S], target [T], integers: tokens of the encoder and of the
            decoder; z [T V] out, the scores.
            E [V D] is the shared table; P [S D] and Q [T D] are the learned
            positions of both sides.
            Between the three uses of the table stands the smallest model that
            has them all: a decoder whose attention takes the mean of the
            memory, and nothing else but the last norm of each side.

Forward     The three uses, as three matrices:

            Es_vd = E_vd
            Et_vd = E_vd
            Ez_vd = E_vd

            The encoder, and the norm of its output (see layer_norm):

            x_sd = √D Es_{source(s),d} + P_sd
            c_sd = x_sd - mean_e x_se
            r_s = (mean_d c_sd² + ε)^-½
            m_sd = c_sd r_s

            The decoder, which adds the memory's mean, and its norm:

            w_td = √D Et_{target(t),d} + Q_td + mean_s m_sd
            c'_td = w_td - mean_e w_te
            ρ_t = (mean_d c'_td² + ε)^-½
            y_td = c'_td ρ_t

            The scores:

            z_tv = Σ_d y_td Ez_vd

Backward    The scores:

            dEz_vd = Σ_t dz_tv y_td
            dy_td = Σ_v dz_tv Ez_vd

            The decoder:

            dw_td = ρ_t (dy_td - mean_e dy_te - y_td mean_e y_te dy_te)
            dEt_vd = √D Σ_t [target_t = v] dw_td
            dQ_td = dw_td

            The encoder, through the memory:

            dm_sd = Σ_t dw_td / S
            dx_sd = r_s (dm_sd - mean_e dm_se - m_sd mean_e m_se dm_se)
            dEs_vd = √D Σ_s [source_s = v] dx_sd
            dP_sd = dx_sd

            One table gets all three:

            dE_vd = dEs_vd + dEt_vd + dEz_vd
"""
import numpy as np

from pyllama import params
from pyllama.models import transformer
from pyllama.study.derivation import Derivation, Step

ATTENTION = "model.decoder.layers.0.encoder_attn"


def code(names: dict) -> dict:
    """Both passes of a Transformer, all of whose weights are 0 but those of the memory's mean."""
    (V, D), target = names["E"].shape, names["target"]
    rows = max(len(names["P"]), len(names["Q"]))
    c = transformer.TransformerConfig(
        vocab_size=V, d_model=D, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=1, decoder_ffn_dim=1, max_position_embeddings=rows,
        positions="learned", norm_first=True, layer_norm_eps=float(names["ε"]), decoder_start_token_id=int(target[0]))
    first = transformer.init(c, dtype="float64")
    zeros = {name: a if "norm.weight" in name else np.zeros_like(a) for name, a in params.leaves(first)}
    tables = {f"model.{side}.embed_positions.weight": np.pad(names[name], ((0, rows - len(names[name])), (0, 0)))
              for side, name in (("encoder", "P"), ("decoder", "Q"))}
    means = {f"{ATTENTION}.{name}.weight": np.eye(D) for name in ("v_proj", "out_proj")}
    p = params.named(first, zeros | tables | means | {"model.shared.weight": names["E"]})
    labels = np.append(target[1:], 0)                           # the decoder reads them one position later
    z, back = transformer.logits(names["source"][None], p, c, labels=labels[None])
    grads = dict(params.leaves(back(names["dz"][None])))
    return {"z": z[0], "dE": grads["model.shared.weight"]} | {
        d: grads[name][:len(names[d[1:]])] for d, name in zip(("dP", "dQ"), tables, strict=True)}


DERIVATION = Derivation(
    title="One table for source, target and scores",
    source="pyllama.models.transformer",
    symbols=False,
    arrays={"source": "S", "target": "T", "E": "V D", "P": "S D", "Q": "T D", "dz": "T V"},
    letters={"s": "S", "t": "T", "d": "D", "e": "D", "v": "V"},
    sizes={"S": 3, "T": 2, "D": 3, "V": 4},
    implicit=(),
    integers={"source": "V", "target": "V"},
    constants={"ε": ""},
    loss={"z": "dz"},
    code=code,
    steps=(
        Step("Es_vd = E_vd", "The rows that the encoder reads.", 'return p["shared"] if c.share_embeddings'),
        Step("Et_vd = E_vd", "The rows that the decoder reads."),
        Step("Ez_vd = E_vd", "The matrix that scores the words.",
             'table = table_of(p["model"], "decoder", c) if c.tie_word_embeddings else p["lm_head"]'),
        Step("x_sd = √D Es_{source(s),d} + P_sd", "The factor `√D` brings the token to the size of its position "
             "(Vaswani et al., section 3.4); BART has none.",
             "x = in_float32(lambda tokens, positions: tokens * scale + positions, tokens, positions)"),
        Step("c_sd = x_sd - mean_e x_se", "The norm at the end of the encoder."),
        Step("r_s = (mean_d c_sd² + ε)^-½", "One over the standard deviation."),
        Step("m_sd = c_sd r_s", "The memory.",
             "memory, encode_back = encode(ids, p, c, mask=mask, draw=draw, recompute=recompute)"),
        Step("w_td = √D Et_{target(t),d} + Q_td + mean_s m_sd", "Attention with equal weights: a mean.  For any other "
             "attention see cross_attention.",
             "x, decode_back = decode(target, memory, p, c, mask=mask, draw=draw, recompute=recompute)"),
        Step("c'_td = w_td - mean_e w_te", "The norm at the end of the decoder."),
        Step("ρ_t = (mean_d c'_td² + ε)^-½", "One over the standard deviation."),
        Step("y_td = c'_td ρ_t", "What the scores are made of."),
        Step("z_tv = Σ_d y_td Ez_vd", "A word has a high score if its row points as `y` does."),
        Step("dEz_vd = Σ_t dz_tv y_td", "As for any matrix.  Every word of the vocabulary gets a gradient, whether it "
             "is in the batch or not."),
        Step("dy_td = Σ_v dz_tv Ez_vd", "`y` is in the scores of all words."),
        Step("dw_td = ρ_t (dy_td - mean_e dy_te - y_td mean_e y_te dy_te)", "The backward pass of layer_norm.",
             "dmemory, d_target, d_decoder = decode_back(dx)"),
        Step("dEt_vd = √D Σ_t [target_t = v] dw_td", "A lookup (see embedding), with the factor of the forward pass. "
             "Only words of the target get this.", "return token_back(in_float32(lambda dx: dx * scale, dx)), dp"),
        Step("dQ_td = dw_td", "The row of a position is read once, and added as it is."),
        Step("dm_sd = Σ_t dw_td / S", "Each position of the memory is in the mean of every position of the target, "
             "with the weight `1/S`.", "d_source, d_encoder = encode_back(dmemory)"),
        Step("dx_sd = r_s (dm_sd - mean_e dm_se - m_sd mean_e m_se dm_se)",
             "The backward pass of layer_norm.  The first mean is 0 here, because that of `dw` is."),
        Step("dEs_vd = √D Σ_s [source_s = v] dx_sd", "And only words of the source get this."),
        Step("dP_sd = dx_sd", "As for the decoder.", 'dp["embed_positions"] = position_back(dx)'),
        Step("dE_vd = dEs_vd + dEt_vd + dEz_vd",
             "If one matrix is moved, all three copies move.  So the gradients of its uses add; code that keeps one "
             "of them and forgets another still trains, only worse.",
             'return {"shared": summed(d_source, d_target), "encoder": d_encoder, "decoder": d_decoder}'),
    ))
