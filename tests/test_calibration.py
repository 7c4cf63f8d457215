"""Calibration of whole models: each matrix is rounded for the inputs that it gets; reports; texts as samples."""
import numpy as np
import pytest

from pyllama import params
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.op import watching
from pyllama.quantization import EncodedArray, decoded_tree, encoded_tree
from pyllama.quantization.calibration import Method, calibrated_tree, table_moments, uncertainty
from pyllama.quantization.passes import counted, naming, of_encoder, of_text, run, side_by_side
from pyllama.quantization.report import changes, lines
from pyllama.quantization.sample import sampled
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import joined

V, T = 60, 24


def model_of(family, scale=4.0, **options):
    """(configuration, parameters) of a small model whose matrices matter."""
    c = MODELS[family].config.small(Dimensions(vocab_size=V, context=32, width=32, layers=2, heads=2, hidden=64,
                                               dropout=0.0, head=options.pop("head", "lm")))
    c = type(c)(**{**vars(c), **options})
    p = c.model.init(c, seed=1)
    return c, params.rebuild(p, (leaf * np.float32(scale) if leaf.ndim == 2 else leaf for _, leaf in params.leaves(p)))


def text(B=12, seed=0, padding=0):
    ids = np.random.default_rng(seed).integers(V, size=(B, T + 1))
    labels = ids.copy()
    if padding:
        ids[:, -padding:], labels[:, -padding:] = 0, -100
    return of_text(ids, labels)


CASES = {"llama": {}, "tied": {"tie_word_embeddings": True}, "gpt2": {}, "qwen3": {}, "mistral": {"sliding_window": 5},
         "shared": {"share_layers": 2, "embedding_size": 16, "tie_word_embeddings": True}}
each_case = pytest.mark.parametrize("case", CASES)


def case_of(case):
    return model_of("llama" if case in ("tied", "shared") else case, **CASES[case])


def inputs_of(p, c, rows):
    """{name: the input of each matrix} in a plain run."""
    name_of, inputs_of = naming(p), {}

    def watch(op, call, inputs, options):
        if (name := name_of(op, inputs)) and op.name != "embedding":
            inputs_of[name] = counted(inputs[0], rows.counted)
        return call(*inputs, **options)

    with watching(watch):
        run(p, c, rows.inputs, recompute=True)
    return inputs_of


@each_case
def test_a_matrix_gets_the_inputs_of_the_model_and_of_what_has_been_rounded(case):
    """x as in a run of the model; y as in a run of the finished other model, though that was made on the way."""
    c, p = case_of(case)
    rows, seen, other = text(padding=3), {}, {}

    def replacement(name, w, x, y):
        if x is not None:
            seen[name] = x, y
        other.setdefault(name, w + 0.1 * np.sign(w))
        return other[name]

    side_by_side(p, c, rows, replacement)
    q = params.rebuild(p, (np.array(other.get(name, leaf.T).T if name.endswith(c.TRANSPOSED) else
                                    other.get(name, leaf)) for name, leaf in params.leaves(p)))
    assert {name for name, _ in params.leaves(p)} >= seen.keys() >= inputs_of(p, c, rows).keys()
    for (name, x), y in zip(inputs_of(p, c, rows).items(), inputs_of(q, c, rows).values(), strict=True):
        np.testing.assert_allclose(seen[name][0], x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(seen[name][1], y, rtol=1e-4, atol=1e-4)
    assert len(other) == sum(name.endswith("weight") and leaf.ndim == 2 and "wpe" not in name
                             for name, leaf in params.leaves(p))


@each_case
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_calibrated_model_is_nearer_to_the_original(case, kind):
    """Beside rounding to the nearest: what the matrices compute inside the model, on another text."""
    c, p = case_of(case)
    calibrated, nearest = calibrated_tree(p, c, kind, text(40)), encoded_tree(p, kind, c)
    for (name, leaf), (_, ours) in zip(params.leaves(nearest), params.leaves(calibrated), strict=True):
        if isinstance(leaf, EncodedArray):
            assert (ours.shape, ours.kind, ours.transposed) == (leaf.shape, leaf.kind, leaf.transposed), name
        else:
            np.testing.assert_array_equal(ours, leaf)
    other = text(40, seed=1)
    errors = [np.mean([change.inside for change in changes(p, tree, c, other) if change.inside is not None])
              for tree in (calibrated, nearest)]
    assert errors[0] < 0.8 * errors[1]


def test_each_part_of_the_method_helps():
    c, p = case_of("tied")
    other = text(40, seed=1)
    methods = [Method(False, False, False, False), Method(True, False, False, False), Method(True, False, True, False),
               Method(True, False, True, True)]

    def loss(tree):
        z, _ = c.model.logits(other.inputs["ids"], decoded_tree(tree), c)
        return float(np.mean((z - z0)**2))

    z0, _ = c.model.logits(other.inputs["ids"], p, c)
    errors = [loss(calibrated_tree(p, c, "q4_0", text(40), method)) for method in methods]
    assert errors[0] < loss(encoded_tree(p, "q4_0", c))
    assert errors[1] < errors[0]
    assert errors[2] < errors[1]


def test_an_encoder_is_calibrated_without_a_loss():
    c, p = model_of("bert", head="none", hidden_act="gelu")
    ids = np.random.default_rng(3).integers(V, size=(40, T))
    mask = (np.arange(T) < np.random.default_rng(4).integers(5, T, size=40)[:, None]).astype(int)
    rows = of_encoder(ids, mask)
    errors = [np.mean([change.inside for change in changes(p, tree, c, rows) if change.inside is not None])
              for tree in (calibrated_tree(p, c, "q4_0", rows), encoded_tree(p, "q4_0", c))]
    assert errors[0] < 0.8 * errors[1]
    pooler = calibrated_tree(p, c, "q4_0", rows)["bert"]["pooler"]["dense"]["weight"]       # no pass comes to it
    np.testing.assert_array_equal(pooler.data, EncodedArray.of(p["bert"]["pooler"]["dense"]["weight"], "q4_0").data)


def test_padding_does_not_count():
    c, p = case_of("llama")
    rows = text(8, padding=4)
    other = rows.inputs["ids"].copy()
    other[:, -4:] = 7
    again = rows._replace(inputs={**rows.inputs, "ids": other})
    for (_, a), (_, b) in zip(*(params.leaves(calibrated_tree(p, c, "q4_0", each)) for each in (rows, again)),
                              strict=True):
        if isinstance(a, EncodedArray):
            assert (a.decoded() != b.decoded()).mean() < 0.01               # the order of sums


def test_matrices_that_cannot_be_divided_into_blocks_make_up_for_the_others_as_f16():
    c, p = model_of("llama", intermediate_size=40)
    tree = calibrated_tree(p, c, "q4_0", text())
    down = tree["model"]["layers"][0]["mlp"]["down_proj"]["weight"]
    assert down.kind == "f16"
    assert abs(down.decoded() - p["model"]["layers"][0]["mlp"]["down_proj"]["weight"]).max() > 1e-3


@pytest.mark.parametrize("case", ["llama", "tied"])
def test_the_moments_of_a_table_are_those_of_its_gradients(case):
    """Each token occurs once in the text, so that the gradient of its row is the gradient at its place."""
    c, p = case_of(case)
    ids = np.arange(V)[None, :T + 1].copy()
    rows = of_text(ids, ids)
    _, back = c.model.loss(ids, ids, p, c, count=1)
    gradients = back()["model"]["embed_tokens"]["weight"].astype(float)
    (h,) = table_moments(p, c, rows).values()
    if case == "tied":
        x = inputs_of(p, c, rows)["model.embed_tokens.weight"]
        z = (x @ p["model"]["embed_tokens"]["weight"].T).astype(float)
        q = np.exp(z - z.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        kappa = np.mean(1 - q[np.arange(T), ids[0, 1:]])
        assert uncertainty(p, c, rows) == pytest.approx(kappa, rel=1e-4)
        q[np.arange(T), ids[0, 1:]] -= 1
        gradients -= q.T @ x                                # the output matrix's part
        s = gradients[:T].T @ gradients[:T] / T + kappa * x.T @ x / T
    else:
        s = gradients[:T].T @ gradients[:T] / T
    damping = (np.trace(h) - np.trace(s)) / len(s)
    assert damping > 0
    np.testing.assert_allclose(h - damping * np.eye(len(s)), s, rtol=1e-3, atol=1e-3 * abs(s).max())


def test_a_model_that_computes_infinities_is_refused():
    c, p = case_of("llama")
    p["model"]["norm"]["weight"][:] = 3e38
    with pytest.raises(UserError, match="NaN or infinities on this text"), np.errstate(all="ignore"):
        calibrated_tree(p, c, "q4_0", text())


# --- reports ----------------------------------------------------------------------------------------------------------

@each_case
def test_the_report_compares_products(case):
    """Beside the products themselves."""
    c, p = case_of(case)
    rows = text(padding=2)
    tree = encoded_tree(p, "q4_0", c)
    changed = {change.name: change for change in changes(p, tree, c, rows)}
    q = params.rebuild(p, (np.array(leaf) for _, leaf in params.leaves(decoded_tree(tree))))
    before, after = inputs_of(p, c, rows), inputs_of(q, c, rows)
    ours, theirs = dict(params.leaves(p)), dict(params.leaves(q))
    for name, change in changed.items():
        w, v = ours[name], theirs[name]
        assert change.weights == pytest.approx(np.linalg.norm(w - v) / np.linalg.norm(w), rel=1e-5)
        if name not in before:
            assert change.outputs is change.inside is None
            continue
        w, v = (w, v) if name.endswith(c.TRANSPOSED) else (w.T, v.T)
        whole = np.linalg.norm(before[name] @ w)
        assert change.outputs == pytest.approx(np.linalg.norm(before[name] @ (w - v)) / whole, rel=1e-3)
        assert change.inside == pytest.approx(np.linalg.norm(before[name] @ w - after[name] @ v) / whole, rel=1e-3)
    said = lines([*changed.values()])
    assert len(said) == len(changed) + 2
    assert {len(line) for line in said} == {80}


# --- samples ----------------------------------------------------------------------------------------------------------

def test_a_sample_is_spread_over_the_text_and_leaves_the_end_out():
    c, _ = case_of("llama")
    tokens = joined([np.arange(4000)])
    sample = sampled(tokens, Tokenizer.bytes(), c, held_out=0.25, most=32 * 10)
    assert sample.window == 32
    assert sample.rows.inputs["ids"].shape == (10, 33)
    assert len(sample.held_out) == 1000
    starts = sample.rows.inputs["ids"][:, 0]
    assert set(np.diff(starts)) == {9 * 32}
    assert starts[-1] + 33 <= 3000 == sample.held_out[:1][0]
    assert len(sampled(tokens, Tokenizer.bytes(), c).held_out) == 0


def test_documents_with_a_start_token_are_read_from_their_beginnings():
    c, _ = case_of("llama")
    tokenizer = special.framed(special.byte_pairs(["a text"], 300), end=False)
    tokens = joined([np.array([special.BOS, *range(10, 10 + n)]) for n in (5, 30, 9, 12, 40, 8, 20, 35)])
    sample = sampled(tokens, tokenizer, c, most=100)
    ids, labels = sample.rows.inputs.values()
    assert sample.cut.by_document
    assert (ids[:, 0] == special.BOS).all()
    inside = np.arange(ids.shape[1]) < (labels != -100).sum(axis=1)[:, None]
    np.testing.assert_array_equal(labels, np.where(inside, ids, -100))
    assert 60 < (labels != -100).sum() <= 100


def test_a_short_text_and_a_model_that_does_not_continue_texts_are_refused():
    c, _ = case_of("llama")
    with pytest.raises(UserError, match="has 33 tokens, but calibration in windows of 32 needs 34; give more text"):
        sampled(joined([np.arange(33)]), Tokenizer.bytes(), c)
    with pytest.raises(UserError, match="needs 170; give more text"):
        sampled(joined([np.arange(150)]), Tokenizer.bytes(), c, held_out=0.2)
    c, _ = model_of("bert", head="masked_lm")
    with pytest.raises(UserError, match="a model that continues text, but the model is a bert with the head 'masked"):
        sampled(joined([np.arange(500)]), Tokenizer.bytes(), c)
