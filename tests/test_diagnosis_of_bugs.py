"""Bugs of the catalogue, planted in our ops, are named in words."""
import itertools

import numpy as np
import pytest

from pyllama import backend
from pyllama.op import OPS
from pyllama.testing.catalogue import bugs, planted
from pyllama.testing.diagnosis import Evidence, diagnose
from pyllama.testing.problems import choose_by, problem

NAMED = {                                               # bug: the input whose gradient is wrong, what is said of it
    "add_rms_norm.residual_counted_twice": ("x", "Constant factor 2.000: "),
    "add_rms_norm.a_gets_nothing": ("a", "All zeros: "),
    "attention.scale_missing": ("q", "Constant factor "),
    "attention.nothing_flows": ("v", "All zeros: "),
    "attention.first_head_of_the_group": ("v", "Contributions lost: "),
    "cross_entropy.mean_over_the_classes": ("z", "Constant factor "),
    "cross_entropy.upstream_ignored": ("z", "dy ignored: "),
    "cross_entropy.one_hot_missing": ("z", "Wrong only at the index of the last axis that t has: "),
    "dropout.mask_not_applied": ("x", "Wrong only "),
    "embedding.repeated_ids_overwritten": ("w", "Lost duplicates: "),
    "embedding.ids_off_by_one": ("w", "Shifted: claimed is measured, moved by -1 along axis 0 "),
    "gelu.tanh_backward_for_exact": ("x", "Nearly right: "),
    "gelu.density_missing": ("x", "Missing term: measured - claimed = x × dy × φ(x)"),
    "glove.factor_2_missing": ("w", "Constant factor 0.500: "),
    "glove.sign_of_y": ("y", "Wrong sign: "),
    "layer_norm.variance_term_missing": ("x", "Missing term: along the last axis, measured - claimed = a + b × x"),
    "layer_norm.gradients_of_w_and_b_swapped": ("b", "Gradient of the wrong input: "),
    "linear.weight_gradient_of_the_last_row": ("w", "Contributions lost: "),
    "linear.weight_gradient_transposed": ("w", "Transposed"),
    "linear.weight_gradient_in_half_precision": ("w", "Computed in float16: "),
    "relu.multiplied_by_x": ("x", "Wrong factor: x is there once too often: "),
    "rms_norm.dw_never_written": ("w", "All zeros: "),
    "rope.second_half_lost": ("x", "There: All zeros: "),
    "softmax.negated": ("x", "Wrong sign: "),
    "softmax.plus_the_mean": ("x", "Missing term or one with the wrong sign: "),
    "softmax.sum_missing": ("x", "Missing term: measured - claimed is y times something constant along "),
    "softmax.factor_y_missing": ("x", "Wrong factor: y is missing: "),
    "swiglu.sigma_missing_in_du": ("u", "Wrong factor: σ(g) is missing: "),
    "swiglu.gradients_swapped": ("g", "Gradient of the wrong input: claimed for g is the measured gradient of u."),
    "tanh.input_saved_instead_of_output": ("x", "Another formula: claimed = dy × (1 - x²)"),
    "tanh.parentheses_missing": ("x", "dy not linear: "),
}


def derivative(op, inputs, options, dys, which):
    """<dys, ∂outputs/∂x> for each entry of input `which`."""
    dx = np.zeros(inputs[which].shape)
    for index in np.ndindex(dx.shape):
        moved = [a if a is None or a.dtype.kind != "f" else a.astype(complex) for a in inputs]
        moved[which][index] += 1e-30j
        outputs = op.each(op.forward(*moved, **options)[0])
        dx[index] = sum(np.sum(dy * np.imag(y)) for dy, y in zip(dys, outputs, strict=True)) / 1e-30
    return dx


def wrong_gradients(bug, name):
    """The evidence on every small problem, drawn from one seed, at which the gradient of the input is wrong."""
    op, rng = OPS[bug.op], np.random.default_rng(0)
    while True:
        inputs, options, _ = problem(op, choose_by(rng))
        sizes = [a.size for a in inputs if a is not None]
        if min(sizes) < 8 or max(sizes) > 200:
            continue
        yield from evidences(op, bug, name, inputs, options, rng)


def evidences(op, bug, name, inputs, options, rng):
    names = [declared.name for declared in op.inputs]
    ys = [np.asarray(y) for y in op.each(op(*inputs, **options)[0])]
    which, floats = names.index(name), [i for i, a in enumerate(inputs) if a is not None and a.dtype.kind == "f"]
    for j, output in enumerate(op.outputs):

        def around(dy, j=j):
            return [dy if k == j else np.zeros(y.shape) for k, y in enumerate(ys)]

        def gradient(dy, around=around):
            with backend.use("numpy"), planted(bug):
                dys = around(dy)
                return op(*inputs, **options)[1](tuple(dys) if len(dys) > 1 else dys[0])[which]

        dy = rng.standard_normal(ys[j].shape)
        measured = {names[i]: derivative(op, inputs, options, around(dy), i) for i in floats}
        right = measured.pop(name)
        tolerance = np.full(right.shape, 1e-11 * max(np.abs(a).max() for a in (right, *measured.values())))
        evidence = Evidence(name, output.name, {n: a for n, a in zip(names, inputs, strict=False) if a is not None},
                            inputs[which], ys[j], dy, np.asarray(gradient(dy)), right, tolerance, gradient, measured,
                            slope=lambda dy, around=around: derivative(op, inputs, options, around(dy), which))
        if evidence.bad.any():
            yield evidence


@pytest.mark.parametrize("name", NAMED)
def test_a_bug_of_the_catalogue_is_named(name):
    bug = next(bug for bug in bugs(name.partition(".")[0]) if str(bug) == name)
    given, words = NAMED[name]
    for evidence in itertools.islice(wrong_gradients(bug, given), 2):
        assert any(sentence.startswith(words) for sentence in diagnose(evidence)), diagnose(evidence)
