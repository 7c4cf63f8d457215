"""A model is a function with a back, like an op: one test for all of them."""
from dataclasses import fields, replace

import numpy as np
import pytest

from pyllama import backend, params
from pyllama.errors import UserError
from pyllama.models import (
    MODELS,
    bart,
    bert,
    glove,
    gpt2,
    llama,
    llama_config,
    lstm,
    roberta,
    skipgram,
    textbook,
    transformer,
)
from pyllama.models.config import Dimensions
from pyllama.models.kv_cache import new_cache
from pyllama.models.sharing import SharingConfig
from pyllama.rng import Draw
from pyllama.testing import check_partials, gradcheck
from pyllama.testing.methods.slopes import CHAIN, WIDTHS
from tests.gpu import brought, moved

# They add one number to all scores of a softmax, which does not feel it: the biases of keys that no rope turns; and of
# a span, whose softmax runs over the places, what is added to the vectors of all places.
IDLE = ("k_proj.bias", "key.bias", "k_lin.bias")
IDLE_IN_SPAN = ("qa_outputs.bias", "layer.1.output.LayerNorm.bias", "layer.1.output_layer_norm.bias")
SMALL = dict(vocab_size=19, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
             max_position_embeddings=16, initializer_range=0.5)


GPT2 = dict(vocab_size=19, n_positions=7, n_embd=12, n_layer=2, n_head=3, n_inner=20)
SEQ2SEQ = dict(vocab_size=19, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
               decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=16)
BERT = dict(vocab_size=19, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=7)
BART = SEQ2SEQ | {"max_position_embeddings": 7}
BLOCK = dict(vocab_size=19, hidden_size=12, intermediate_size=20, max_position_embeddings=7)
WORDS = dict(vocab_size=19, hidden_size=5)
NARROW = dict(vocab_size=19, embedding_dim=5, hidden_size=4, num_labels=3)
IDS = np.random.default_rng(1).integers(0, SMALL["vocab_size"], (2, 6))
LABELS = np.where(np.arange(12).reshape(2, 6) == 2, -100, IDS)
PADDING = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
ON_THE_RIGHT = PADDING[:, ::-1]

DROPOUT = Draw((0, 7))
WIDTH = 2.0 ** -14                              # of differences: wider ones meet kinks of ReLUs, narrower ones noise

PAIRS = (IDS[0], IDS[1])                        # their words occur once, more often or not at all
TEXT, PAIR = (IDS, LABELS), (IDS, LABELS[:, 1:])
TAGS, CLASSES = (IDS, np.where(LABELS < 0, -100, IDS % 3)), (IDS, np.array([2, 0]))
ENDED = np.where(np.arange(6) == [[3], [5]], 2, IDS)                        # each text has its end token
INPUTS = {"lm": TEXT, "masked_lm": TEXT, "seq2seq": PAIR, "classification": (ENDED, np.array([1, 0])),
          "tagging": (IDS, np.where(LABELS < 0, -100, IDS % 2)), "span": (IDS, np.array([[1, -100], [0, 3]]))}


def small(kind, head):
    return MODELS[kind].config.small(Dimensions(vocab_size=19, context=7, head=head, width=12, layers=2, heads=3,
                                                hidden=20, dropout=0.3))


def repeats_its_parent(kind):
    """Has a family's configuration nothing of its own but names, and defaults which small() replaces?"""
    config = MODELS[kind].config
    own = {name for name in vars(config) if name == "__post_init__" or not name.startswith("__")}
    if own - {field.name for field in fields(config)} - {"TYPE", "HEADS", "ALIASES", "model"}:
        return False
    shape = Dimensions(vocab_size=19, context=7, head=min(config.HEADS))
    return vars(config.small(shape)) == vars(config.__base__.small(shape))


FAMILIES = {f"{kind} {head}": (family.model, small(kind, head), INPUTS[head],
                               {"mask": ON_THE_RIGHT, "draw": DROPOUT, "label_smoothing": 0.1 * (head != "span")})
            for kind, family in MODELS.items() if not repeats_its_parent(kind)
            for head in family.config.HEADS if head != "none"}
SHARING = {"share_layers": 2, "embedding_size": 5}
SHARERS = {kind: next(iter(family.config.HEADS)) for kind, family in MODELS.items()
           if issubclass(family.config, SharingConfig) and not repeats_its_parent(kind)}
SHARED = {f"{kind} shared": (MODELS[kind].model, replace(small(kind, head), **SHARING), INPUTS[head],
                             {"mask": ON_THE_RIGHT}) for kind, head in SHARERS.items()}
VARIANTS = {                                    # model, configuration, what goes into its loss before p and c, options
    "llama": (llama, llama.LlamaConfig(**SMALL, num_key_value_heads=2), TEXT, {}),
    "llama-tied": (llama, llama.LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=True), TEXT,
                   {"z_loss": 0.01}),
    "llama-bias-meta": (llama, llama.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=4,
                                                 rope_interleaved=True), TEXT, {"label_smoothing": 0.1}),
    "llama-window-padding": (llama, llama.LlamaConfig(**SMALL, sliding_window=3), TEXT, {"mask": PADDING}),
    "qwen2-window": (llama, llama_config.Qwen2Config(**SMALL | {"num_key_value_heads": 2}, use_sliding_window=True,
                                                     sliding_window=3, max_window_layers=1), TEXT, {}),
    "qwen3-bias": (llama, llama_config.Qwen3Config(**SMALL, num_key_value_heads=3, head_dim=4, attention_bias=True),
                   TEXT, {"mask": PADDING}),
    "llama-stretched": (llama, llama.LlamaConfig(**SMALL, rope_theta=100.0, rope_scaling={
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8}), TEXT, {}),
    "llama-dropout": (llama, llama.LlamaConfig(**SMALL, resid_pdrop=0.3), TEXT, {"draw": DROPOUT}),
    "llama-shared-tied": (llama, llama.LlamaConfig(**SMALL | {"num_hidden_layers": 4}, share_layers=[1, 2, 2, 1],
                                                   embedding_size=5, resid_pdrop=0.3, tie_word_embeddings=True), TEXT,
                          {"draw": DROPOUT}),
    "llama-uneven": (llama, llama.LlamaConfig(**SMALL, num_key_value_heads=2, num_key_value_heads_by_layer=[1, 2],
                                              intermediate_size_by_layer=[20, 3]), TEXT, {}),
    "llama-factored": (llama, llama.LlamaConfig(**SMALL, num_key_value_heads=2, attention_bias=True, ranks_by_layer={
        "q_proj": [2, 0], "v_proj": [0, 3], "o_proj": [1, 2], "gate_proj": [3, 0], "down_proj": [0, 4]}), TEXT, {}),
    "llama-classification": (llama, llama.LlamaConfig(**SMALL, head="classification", num_labels=3), CLASSES,
                             {"mask": ON_THE_RIGHT}),
    "gpt2": (gpt2, gpt2.GPT2Config(**GPT2), TEXT, {"z_loss": 0.01}),
    "gpt2-untied-padding": (gpt2, gpt2.GPT2Config(**GPT2, tie_word_embeddings=False, activation_function="relu"), TEXT,
                            {"mask": PADDING, "label_smoothing": 0.1}),
    "gpt2-factorized": (gpt2, gpt2.GPT2Config(**GPT2, embedding_size=5), TEXT, {}),
    "gpt2-dropout": (gpt2, gpt2.GPT2Config(**GPT2), TEXT, {"draw": DROPOUT}),
    "transformer": (transformer, transformer.TransformerConfig(**SEQ2SEQ), PAIR, {"label_smoothing": 0.1}),
    "transformer-pre-norm-untied": (transformer, transformer.TransformerConfig(
        **SEQ2SEQ, norm_first=True, share_embeddings=False, tie_word_embeddings=False, activation_function="gelu"),
        PAIR, {"mask": ON_THE_RIGHT}),
    "transformer-two-tables-dropout": (transformer, transformer.TransformerConfig(
        **SEQ2SEQ, share_embeddings=False, positions="learned", max_position_embeddings=7), PAIR, {"draw": DROPOUT}),
    "bart": (bart, bart.BartConfig(**BART), PAIR, {"mask": ON_THE_RIGHT}),
    "bart-classification": (bart, bart.BartConfig(**BART, head="classification"),
                            (ENDED, np.array([2, 0])), {"mask": ON_THE_RIGHT, "draw": Draw((3,))}),
    "textbook": (textbook, textbook.TextbookConfig(**BLOCK), TEXT, {"label_smoothing": 0.1}),
    "textbook-all": (textbook, textbook.TextbookConfig(**BLOCK, residual=True, norm=True, positions=True), TEXT, {}),
    "textbook-norm": (textbook, textbook.TextbookConfig(**BLOCK, norm=True), TEXT, {}),
    "skipgram": (skipgram, skipgram.SkipgramConfig(**WORDS, negatives=3),
                 (*PAIRS, np.random.default_rng(3).integers(0, 19, (6, 3))), {}),
    "glove": (glove, glove.GloveConfig(**WORDS, x_max=4.0), (*PAIRS, np.array([0.1, 0.5, 1.0, 3.0, 4.0, 90.0])), {}),
    "lstm": (lstm, lstm.LstmConfig(**NARROW), CLASSES, {}),
    "lstm-stacked-padding": (lstm, lstm.LstmConfig(**NARROW, num_layers=2), CLASSES, {"mask": ON_THE_RIGHT}),
    "lstm-forward": (lstm, lstm.LstmConfig(**NARROW, num_layers=2, bidirectional=False, classifier_size=6), CLASSES,
                     {"mask": ON_THE_RIGHT, "label_smoothing": 0.1}),
    "lstm-tagging": (lstm, lstm.LstmConfig(**NARROW, head="tagging", classifier_size=6), TAGS,
                     {"mask": ON_THE_RIGHT, "count": 20}),
    "lstm-dropout": (lstm, lstm.LstmConfig(**NARROW, num_layers=2, head="tagging", dropout=0.3), TAGS,
                     {"draw": DROPOUT}),
    "bert": (bert, bert.BertConfig(**BERT), TEXT, {"mask": PADDING, "label_smoothing": 0.1}),
    "bert-classification": (bert, bert.BertConfig(**BERT, head="classification", num_labels=4, hidden_act="gelu_new"),
                            (IDS, np.array([3, 0])), {"draw": DROPOUT, "types": PADDING}),
    "bert-weights": (bert, bert.BertConfig(**BERT, head="classification", num_labels=4), (IDS, np.array([3, 0])),
                     {"weights": np.array([0.5, 2.0]), "count": 1.5}),
    "bert-tagging": (bert, bert.BertConfig(**BERT, head="tagging", num_labels=19), TEXT, {"draw": DROPOUT}),
    "bert-shared-layers": (bert, bert.BertConfig(**BERT, share_layers=2), TEXT, {"mask": PADDING}),
    "bert-span": (bert, bert.BertConfig(**BERT, head="span"), (IDS, np.array([[1, -100], [0, 3]])),
                  {"mask": ON_THE_RIGHT, "types": PADDING}),
}
CASES = FAMILIES | SHARED | VARIANTS
each_case = pytest.mark.parametrize(("model", "c", "inputs", "options"), CASES.values(), ids=CASES)
each_variant = pytest.mark.parametrize(("model", "c", "inputs", "options"), VARIANTS.values(), ids=VARIANTS)


def randomized(model, c):
    """Parameters with nothing at a value that hides a bug: norms random, not one; biases random, not zero.

    0.3 ≈ 1/√12, the width of the models here: what a layer adds drowns neither its input nor the differences in it.
    """
    rng, tree = np.random.default_rng(2), model.init(c, 0, "float64")
    return params.rebuild(tree, (rng.standard_normal(a.shape) * (0.3 if a.ndim > 1 or name.endswith("bias") else 1)
                                 for name, a in params.leaves(tree)))


def require_right(report, idle=()):
    """Every gradient is right by a complex step, and reaches the loss unless its name ends as one of `idle`.

    A report allows 1e-11 of the terms of <dx, v>, and more if rounding explains it.  Here it must not be more: the
    terms of a random v cancel to a hundredth now and then, hence 1e-9 of the sum.
    """
    assert report, str(report)
    for pair in report.pairs:
        slope = abs(pair.worst.measured)
        assert slope > 1e-6 or pair.input.endswith(idle), f"{pair.input} does not reach the loss"
        if slope > 1e-6:
            assert pair.worst.method == "complex step", pair
            assert pair.worst.error <= 1e-9 * slope, pair


@each_case
def test_every_gradient_is_the_complex_step(model, c, inputs, options):
    """The reference takes the step; differences of the kernels confirm it along each direction."""
    p = randomized(model, c)
    report = check_partials(lambda p: model.loss(*inputs, p, c, **options), p, seed=0, entries=0, budget=None)
    assert {pair.input for pair in report.pairs} == {name for name, _ in params.leaves(p)}
    require_right(report, IDLE + IDLE_IN_SPAN if getattr(c, "head", "") == "span" else IDLE)


@each_case
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("on", backend.available())
def test_every_backend_gives_the_gradients_that_were_checked(model, c, inputs, options, recompute, on):
    """840 eps would be the 1e-4 of float32 below.  Both sides are rounded here, so it is twice that: 4e-13."""
    p = randomized(model, c)
    checked = dict(params.leaves(model.loss(*inputs, p, c, **options)[1]()))
    with backend.use(on):
        _, back = model.loss(*moved(on, list(inputs)), moved(on, p), c, recompute=recompute, **moved(on, options))
        grads = {name: brought(grad) for name, grad in params.leaves(back())}
    assert grads.keys() == checked.keys()
    for name, want in checked.items():
        np.testing.assert_allclose(grads[name], want, rtol=0, atol=4e-13 * max(1, np.abs(want).max()), err_msg=name)


@each_variant
def test_a_random_direction_agrees_with_differences(model, c, inputs, options):
    """Of kernels alone, on all parameters as one vector, in memory of several layouts.

    The tolerance is at most what slopes.sharpest() makes of rounding at the narrowest width h that it takes.  It grants
    each loss a noise of 4 eps, which is 8 eps / h of a slope.  Extrapolations from h and from both widths beside it are
    compared, and weights add up to 1.17: of losses rounded by one eps, that is 1.17 (1 + 1/3.7 + 1 + 3.7) = 7 eps / h.
    bound() takes four times the sum: 60 eps / h, less than CHAIN.  ReLUs whose kinks are near need this width.
    """
    flat, p = params.flatten(randomized(model, c))

    def loss(x):
        assert not np.iscomplexobj(x)
        value, back = model.loss(*inputs, params.over(x, p), c, **options)
        return value, lambda dy: end_to_end(p, back(dy))

    report = gradcheck(loss, [flat], seed=0, budget=None, methods="differences", other_values=False, fast_mode=True)
    value, _ = loss(flat)
    assert report.pairs[0].worst.tolerance <= CHAIN * 2.0 ** -52 * value / WIDTHS[-2]


@each_variant
def test_random_entries_agree_with_central_differences(model, c, inputs, options):
    """Of kernels alone: 12 entries of all parameters as one vector, moved by WIDTH and by twice that.

    A slope is a sum of losses with weights of 1.5 / WIDTH, and each has made far less than CHAIN roundings.  What is
    left of the curve is WIDTH⁴ times a fifth derivative: 1e-17 of it.
    """
    flat, p = params.flatten(randomized(model, c))
    value, back = model.loss(*inputs, p, c, **options)
    claimed = end_to_end(p, back())

    def loss(i, x):
        before, flat[i] = flat[i], x                                        # p has views of it
        there, _ = model.loss(*inputs, p, c, **options)
        flat[i] = before
        return there

    def central(i, width):
        return (loss(i, flat[i] + width) - loss(i, flat[i] - width)) / (2 * width)

    for i in np.random.default_rng(0).choice(flat.size, 12, replace=False):
        measured = (4 * central(i, WIDTH) - central(i, 2 * WIDTH)) / 3
        assert abs(claimed[i] - measured) <= CHAIN * 2.0 ** -52 * value / WIDTH, i


def end_to_end(p, grads):
    """The gradients in one vector, in the order of p."""
    flat, tree = params.flatten(params.rebuild(p, (np.zeros_like(a) for _, a in params.leaves(p))))
    params.add(tree, grads)
    return flat


@each_case
def test_float32_kernels_and_reference_give_the_same_gradients(model, c, inputs, options):
    """Every gradient within 1e-4 of its largest entry: two blocks of about 30 roundings, amplified up to 30 times."""
    p = randomized(model, c)
    single = params.rebuild(p, (a.astype("float32") for _, a in params.leaves(p)))
    exact = dict(params.leaves(model.loss(*inputs, p, c, **options)[1]()))
    for name, got in params.leaves(model.loss(*inputs, single, c, **options)[1]()):
        assert got.dtype == "float32"
        assert np.abs(got - exact[name]).max() <= 1e-4 * max(1, np.abs(exact[name]).max()), name


@each_case
def test_back_may_be_called_again(model, c, inputs, options):
    _, back = model.loss(*inputs, randomized(model, c), c, **options)
    for (name, a), (_, b) in zip(params.leaves(back()), params.leaves(back(2.0)), strict=True):
        np.testing.assert_allclose(2 * a, b, rtol=1e-12, err_msg=name)


@each_case
def test_gradients_that_are_added_where_they_are_made_are_the_same(model, c, inputs, options):
    """As in training: each op that reads a leaf adds to its place, and back returns a zero for it."""
    p = randomized(model, c)
    want = dict(params.leaves(model.loss(*inputs, p, c, **options)[1]()))
    grads = params.rebuild(p, (np.full_like(a, 3.0) for _, a in params.leaves(p)))
    with params.adding(p, grads):
        params.add(grads, model.loss(*inputs, p, c, **options)[1]())
    for name, got in params.leaves(grads):
        np.testing.assert_allclose(got - 3.0, want[name], rtol=1e-10, atol=1e-13, err_msg=name)


@each_case
@pytest.mark.parametrize("first", [0, 1])
def test_every_other_parameter_may_be_frozen_and_the_gradients_of_the_rest_stay(model, c, inputs, options, first):
    """Each sum has the same terms in the same order.  A gradient that is added ahead has its terms in another one: of
    fewer than 100 terms, which are below 10, an order moves at most 100 x 10 x 2^-53."""
    p = randomized(model, c)
    want = dict(params.leaves(model.loss(*inputs, p, c, **options)[1]()))
    names = list(want)[first::2]
    flat = np.zeros(sum(want[name].size for name in names))
    grads = params.gradients(flat, p, names)
    with params.adding(p, grads, ahead=True):
        params.add(grads, model.loss(*inputs, p, c, **options)[1]())
    for name, got in params.leaves(grads):
        assert (got is params.NONE) == (name not in names)
        if name in names:
            np.testing.assert_allclose(got, want[name], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_gpt2_s_transposed_weights_are_added_where_they_are_made(dtype):
    """The model reads its matrices as `.T`: their gradients must not exist twice, nor in another precision."""
    c = gpt2.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    p = gpt2.init(c, dtype=dtype)
    ids = np.random.default_rng(0).integers(11, size=(2, 6))
    places = params.rebuild(p, (np.zeros_like(a) for _, a in params.leaves(p)))
    with params.adding(p, places):
        left = dict(params.leaves(gpt2.loss(ids, ids, p, c)[1]()))
    for name, place in params.leaves(places):
        assert left[name].dtype == dtype
        assert np.ndim(left[name]) == 0, name
        assert place.any(), name


WRITERS = [kind for kind, family in MODELS.items() if "next token" in family.config.LEARNS.values()]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_family_that_learns_the_next_token_continues_texts(kind):
    model, c = MODELS[kind].model, small(kind, "lm")
    p = randomized(model, c)
    caches = new_cache(c, len(IDS), np.empty(0))
    for start, end in ((0, 3), (3, 4), (4, 6)):
        mask = PADDING[:, :end]
        got = model.next_scores(IDS[:, start:end], p, c, mask=mask, caches=caches)
        want, _ = model.logits(IDS[:, :end], p, c, mask=mask)
        np.testing.assert_allclose(got, want[:, -1], rtol=1e-9)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_family_that_learns_the_next_token_keeps_packed_documents_apart(kind):
    model, c = MODELS[kind].model, small(kind, "lm")
    p = randomized(model, c)
    packed, _ = model.logits(IDS, p, c, segments=np.broadcast_to([4, 4, 1, 1, 1, 1], IDS.shape))
    for document in np.s_[:, :2], np.s_[:, 2:]:
        alone, _ = model.logits(IDS[document], p, c)
        np.testing.assert_allclose(packed[document], alone, rtol=1e-9)


def test_a_roberta_reads_as_many_tokens_as_it_has_positions_after_that_of_padding():
    c = MODELS["roberta"].config(**BERT | {"max_position_embeddings": 8}, type_vocab_size=1, pad_token_id=1)
    p, ids = roberta.init(c), np.full((1, 7), 5)
    assert c.context == 6
    assert c.position_ids(np.array([[1, 5, 1, 5]])).tolist() == [[1, 2, 1, 3]]
    roberta.logits(ids[:, :6], p, c)
    with pytest.raises(UserError, match=r"has 7 tokens, but the model has only 6 positions"):
        roberta.logits(ids, p, c)
