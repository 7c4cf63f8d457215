"""Trees of parameters, one vector, and gradients that are added where they are made."""
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyllama import params
from tests import fakecupy

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
leaf = st.builds(lambda shape, seed: np.random.default_rng(seed).standard_normal(shape), shapes, st.integers(0, 99))
trees = st.recursive(leaf, lambda branch: st.one_of(st.dictionaries(st.sampled_from("abcdefg"), branch, min_size=1),
                                                    st.lists(branch, min_size=1, max_size=3)), max_leaves=8)


def zeros_like(tree):
    return params.rebuild(tree, (np.zeros_like(a) for _, a in params.leaves(tree)))


def shuffled(tree, rng):
    """The same tree, every dict in another order."""
    if isinstance(tree, dict):
        return {key: shuffled(tree[key], rng) for key in rng.permutation(list(tree))}
    return [shuffled(branch, rng) for branch in tree] if isinstance(tree, list) else tree


def test_leaves_have_the_names_of_a_state_dict():
    tree = {"model": {"layers": [{"w": 0}, {"w": 1, "b": 2}]}, "lm_head": {"weight": 3}}
    assert list(params.leaves(tree)) == [("model.layers.0.w", 0), ("model.layers.1.w", 1), ("model.layers.1.b", 2),
                                         ("lm_head.weight", 3)]


@given(tree=trees)
def test_flatten_keeps_names_shapes_and_numbers_in_order(tree):
    flat, views = params.flatten(tree)
    assert [name for name, _ in params.leaves(views)] == [name for name, _ in params.leaves(tree)]
    end = 0
    for (_, view), (_, a) in zip(params.leaves(views), params.leaves(tree), strict=True):
        np.testing.assert_array_equal(view, a, strict=True)
        np.testing.assert_array_equal(flat[end:end + a.size], a.ravel())
        assert not np.shares_memory(view, a)
        end += a.size
    assert end == flat.size


@given(tree=trees)
def test_views_and_vector_are_one_memory(tree):
    flat, views = params.flatten(tree)
    flat[:] = np.arange(flat.size)
    for _, view in params.leaves(views):
        assert not view.size or np.shares_memory(view, flat)
        view *= 2
    np.testing.assert_array_equal(flat, 2 * np.arange(flat.size))


@given(tree=trees)
def test_over_refuses_a_vector_of_another_length(tree):
    flat, _ = params.flatten(tree)
    with pytest.raises(ValueError, match=f"the tree holds {flat.size} numbers"):
        params.over(np.zeros(flat.size + 1), tree)


@given(tree=trees, data=st.data())
def test_a_vector_may_hold_some_leaves_and_leave_the_others(tree, data):
    names = data.draw(st.sets(st.sampled_from([name for name, _ in params.leaves(tree)]), min_size=1))
    flat, views = params.flatten(tree, names)
    grads = dict(params.leaves(params.gradients(np.arange(float(flat.size)), tree, names)))
    end = 0
    for (name, view), (_, a) in zip(params.leaves(views), params.leaves(tree), strict=True):
        if name in names:
            np.testing.assert_array_equal(view, a, strict=True)
            np.testing.assert_array_equal(grads[name].ravel(), np.arange(end, end + a.size))
            assert not a.size or np.shares_memory(view, flat)
            end += a.size
        else:
            assert view is a
            assert grads[name] is params.NONE
    assert end == flat.size
    with pytest.raises(ValueError, match=f"the tree holds {flat.size} numbers"):
        params.over(np.zeros(flat.size + 1), tree, names)


@given(tree=trees, seed=st.integers(0, 99))
def test_add_goes_by_name(tree, seed):
    total = zeros_like(tree)
    params.add(total, tree)
    params.add(total, shuffled(tree, np.random.default_rng(seed)))
    for (_, got), (_, a) in zip(params.leaves(total), params.leaves(tree), strict=True):
        np.testing.assert_array_equal(got, 2 * a, strict=True)


@given(tree=trees, other=trees)
def test_add_refuses_a_tree_of_another_form(tree, other):
    """A branch more or less, a leaf where a branch was, a leaf of another shape: an error, not half a sum."""
    def form(tree):
        return {name: a.shape for name, a in params.leaves(tree)}

    assume(form(tree) != form(other))
    total = zeros_like(tree)
    with pytest.raises(ValueError, match="differ"):
        params.add(total, other)


def test_a_gradient_that_was_added_leaves_one_zero_which_may_be_viewed():
    """As a model may hand it on: transposed, with an axis more, or a sum of such."""
    w, b = np.ones((2, 3)), np.ones(3)
    total = {"w": np.zeros((3, 2)), "b": np.zeros((1, 3))}
    left = params.gather({0: np.zeros((2, 3), "float32"), 1: np.zeros(3, "float32")}, [w, b])
    params.add(total, {"w": (left[0] + left[0]).T, "b": left[1][None]})
    assert not total["w"].any()
    assert not total["b"].any()
    for wrong in (np.float64(1), np.ones(1), np.zeros(2)):
        with pytest.raises(ValueError, match="differ"):
            params.add(total, {"w": left[0], "b": wrong})


def test_the_gradient_of_a_frozen_leaf_is_dropped_wherever_it_comes_from():
    """From an op that has computed it all the same, or from a model that handed it on; its shape is not known."""
    p = {"w": np.ones((2, 3)), "b": np.ones(3)}
    total = params.gradients(np.zeros(3), p, {"b"})
    with params.adding(p, total):
        places = params.places([p["w"].T, p["w"], p["b"]])
        assert [places[i] is params.NONE for i in range(3)] == [True, True, False]
        left = params.gather(places, [np.ones((3, 2)), None, np.ones(3)])
    assert not any(left)
    params.add(total, {"w": np.ones((2, 3)), "b": np.ones(3)})
    np.testing.assert_array_equal(total["b"], [2, 2, 2])
    assert not total["w"]


@pytest.mark.parametrize("asarray", [np.asarray, fakecupy.module().asarray], ids=["host", "device"])
def test_only_the_layouts_of_a_leaf_have_its_place(asarray):
    p, grads = ({"w": asarray(np.zeros((3, 3))), "b": asarray(np.zeros(3))} for _ in range(2))
    assert params.places([p["w"]]) == {}
    w, other = p["w"], asarray(np.zeros((3, 3)))
    with params.adding(p, grads):
        places = params.places([other, w, p["b"], w.T, w[:2], w[:2].T, w + 0])
    assert places.keys() == {1, 2, 3}
    assert places[1] is grads["w"]
    assert places[2] is grads["b"]
    places[3][0, 1] = 1
    assert grads["w"][1, 0] == 1
