"""A model is a function with a back, like an op: one test for all of them."""
import numpy as np
import pytest

from pyllama import backend, params
from pyllama.models import llama

STEP = 1e-30
SMALL = dict(vocab_size=19, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
             max_position_embeddings=16, initializer_range=0.5)


IDS = np.random.default_rng(1).integers(0, SMALL["vocab_size"], (2, 6))
LABELS = np.where(np.arange(12).reshape(2, 6) == 2, -100, IDS)
PADDING = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])

TEXT = (IDS, LABELS)
CASES = {                                       # model, configuration, what goes into its loss before p and c, options
    "llama": (llama, llama.LlamaConfig(**SMALL, num_key_value_heads=2), TEXT, {}),
    "llama-tied": (llama, llama.LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=True), TEXT,
                   {"z_loss": 0.01}),
    "llama-bias-meta": (llama, llama.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=4,
                                                 rope_interleaved=True), TEXT, {"label_smoothing": 0.1}),
    "llama-window-padding": (llama, llama.LlamaConfig(**SMALL, sliding_window=3), TEXT, {"mask": PADDING}),
    "llama-stretched": (llama, llama.LlamaConfig(**SMALL, rope_theta=100.0, rope_scaling={
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8}), TEXT, {}),
    "llama-dropout": (llama, llama.LlamaConfig(**SMALL, resid_pdrop=0.3), TEXT, {"key": (0, 7)}),
}
each_case = pytest.mark.parametrize(("model", "c", "inputs", "options"), CASES.values(), ids=CASES)


def randomised(model, c):
    """Parameters with nothing at a value that hides a bug: norms random, not one; biases random, not zero."""
    rng, tree = np.random.default_rng(2), model.init(c, 0, "float64")
    return params.rebuild(tree, (rng.standard_normal(a.shape) / a.ndim for _, a in params.leaves(tree)))


@each_case
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("on", backend.available())
def test_every_gradient_is_the_complex_step(model, c, inputs, options, recompute, on):
    rng, p = np.random.default_rng(0), randomised(model, c)
    with backend.use(on):
        _, back = model.loss(*inputs, p, c, recompute=recompute, **options)
        grads = dict(params.leaves(back()))
    assert grads.keys() == dict(params.leaves(p)).keys()
    for name, leaf in params.leaves(p):
        v = rng.standard_normal(leaf.shape)
        stepped = params.rebuild(p, (a + 1j * STEP * (v if a is leaf else 0 * a) for _, a in params.leaves(p)))
        exact = model.loss(*inputs, stepped, c, **options)[0].imag / STEP
        assert abs(exact) > 1e-6, f"{name} does not reach the loss"
        np.testing.assert_allclose(np.vdot(grads[name], v), exact, rtol=1e-9, err_msg=name)


@each_case
def test_random_entries_agree_with_central_differences(model, c, inputs, options):
    """eps^(1/3) balances the h² of truncation and the 1/h of rounding: about 1e-10 of the third derivative's scale."""
    flat, p = params.flatten(randomised(model, c))
    grad, into = params.flatten(params.rebuild(p, (np.zeros_like(a) for _, a in params.leaves(p))))
    params.add(into, model.loss(*inputs, p, c, **options)[1]())
    h = np.finfo(float).eps ** (1 / 3)

    def slope(i, h):
        kept, values = flat[i], []
        for step in (h, -h):
            flat[i] = kept + step
            values.append(float(model.loss(*inputs, p, c, **options)[0]))
        flat[i] = kept
        return (values[0] - values[1]) / (2 * h)

    for i in np.random.default_rng(0).choice(flat.size, 40, replace=False):
        near, far = slope(i, h), slope(i, 2 * h)
        assert abs(near - grad[i]) <= abs(far - near) + 1e-9, i        # 1e-9: a loss of 10, times eps, over h, times 3


@each_case
def test_float32_kernels_and_reference_give_the_same_gradients(model, c, inputs, options):
    """Every gradient within 1e-4 of its largest entry: two blocks of about 30 roundings, amplified up to 30 times."""
    p = randomised(model, c)
    single = params.rebuild(p, (a.astype("float32") for _, a in params.leaves(p)))
    exact = dict(params.leaves(model.loss(*inputs, p, c, **options)[1]()))
    for name, got in params.leaves(model.loss(*inputs, single, c, **options)[1]()):
        assert got.dtype == "float32"
        assert np.abs(got - exact[name]).max() <= 1e-4 * max(1, np.abs(exact[name]).max()), name


@each_case
def test_back_may_be_called_again(model, c, inputs, options):
    _, back = model.loss(*inputs, randomised(model, c), c, **options)
    for (name, a), (_, b) in zip(params.leaves(back()), params.leaves(back(2.0)), strict=True):
        np.testing.assert_allclose(2 * a, b, rtol=1e-12, err_msg=name)
