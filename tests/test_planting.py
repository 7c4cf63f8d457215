"""Other code in a function object: whoever imported it runs that; and each call can be watched."""
import functools
import inspect
import random

import numpy as np
import pytest

from pyllama.ops import relu
from pyllama.testing.mutation.mutants import mutants_in
from pyllama.testing.mutation.planting import (
    NotPlantable,
    copied,
    definition_of,
    function_of,
    plant,
    rebuilt,
    same_code,
)
from pyllama.testing.mutation.watching import Comparison, same, watch

factor = 2.0


def product(x, w, *, scale=1.0):
    """Uses a global variable and an option."""
    return factor * x * w * scale


def loop(n):
    return 1 if n == 0 else n * loop(n - 1)


class Layer:
    __gain = 3.0

    def forward(self, x):
        return self.__gain * x

    @staticmethod
    def backward(dy):
        return 3.0 * dy


class Deeper(Layer):
    def forward(self, x):
        return super().forward(x) + 1


def closure(w):
    unused = "kept"

    def times(x, plus=w):
        return w * x + plus if unused else None
    return times


@functools.cache
@functools.wraps(loop)
def wrapped(n):
    return loop(n)


@pytest.fixture
def restored():
    """The functions of this file have their own code again afterwards."""
    functions = [product, loop, Layer.forward, Layer.backward, Deeper.forward]
    parts = ("__code__", "__defaults__", "__kwdefaults__")
    kept = [[getattr(function, part) for part in parts] for function in functions]
    yield
    for function, values in zip(functions, kept, strict=True):
        for part, value in zip(parts, values, strict=True):
            setattr(function, part, value)


@pytest.mark.usefixtures("restored")
def test_a_function_keeps_its_globals_and_gets_the_defaults_of_the_text():
    imported = product
    plant(product, "def product(x, w, *, scale=5.0):\n    return factor + x * w * scale")
    assert imported(1.0, 2.0) == 12.0
    plant(loop, "def loop(n):\n    return 1 if n == 0 else n + loop(n - 1)")            # recursion by its own name
    assert loop(3) == 7


@pytest.mark.usefixtures("restored")
def test_a_method_keeps_its_private_names_and_super():
    plant(Layer.forward, "def forward(self, x):\n    return self.__gain + x")
    plant(Deeper.forward, "def forward(self, x):\n    return super().forward(x) - 1")
    plant(function_of(Layer.backward), "@staticmethod\ndef backward(dy):\n    return -dy")
    assert (Layer().forward(1.0), Deeper().forward(1.0), Layer.backward(1.0)) == (4.0, 3.0, -1.0)


def test_a_closure_keeps_its_variables_even_those_that_the_text_no_longer_reads():
    times = closure(4.0)
    plant(times, "def times(x, plus=w):\n    return x + plus")
    assert times(1.0) == 5.0
    plant(times, "def times(x, plus=w):\n    return w - x")
    assert times(1.0) == 3.0


def test_a_default_that_only_the_place_of_the_definition_knew_stays():
    def outer():
        local = 7.0

        def inner(x, plus=local):
            return x + plus
        return inner
    function = outer()
    plant(function, "def inner(x, plus=local):\n    return x - plus")
    assert function(1.0) == -6.0


def test_the_definition_is_found_behind_decorators():
    assert definition_of(function_of(wrapped)).name == "loop"
    assert [m.change for m in mutants_in(definition_of(Layer.backward), "", "")] == [
        "3.0 * dy → 3.0 / dy", "3.0 * dy → 3.0", "3.0 * dy → dy", "3.0 * dy → 6.0 * dy"]


@pytest.mark.parametrize(("target", "words"), [
    (len, "compiled, not written in Python"), (np.add, "compiled, not written in Python"),
    (relu, "--op relu"), (Layer, "Layer.backward"), (lambda x: x, "lambda"), (3, "of type int"),
])
def test_what_cannot_have_a_bug_says_why(target, words):
    with pytest.raises(NotPlantable, match=words):
        function_of(target)


def test_code_that_does_the_same_is_recognized():
    assert same_code(product.__code__, rebuilt(product, inspect.getsource(product)).__code__)
    assert not same_code(product.__code__, rebuilt(product, inspect.getsource(product).replace("* w", "/ w")).__code__)
    assert not same_code((lambda: 1).__code__, (lambda: 1.0).__code__)


@pytest.mark.usefixtures("restored")
def test_a_watcher_gets_the_arguments_and_the_signature_stays():
    before, seen = inspect.signature(product), []
    watch(product, lambda args, kwargs: seen.append((args, kwargs)))
    watch(loop, lambda args, kwargs: 5)                                             # another one in this module
    product(1, w=2)
    product(1, 2, scale=3)
    assert seen == [((1, 2), {"scale": 1.0}), ((1, 2), {"scale": 3})]
    assert (inspect.signature(product), loop(3)) == (before, 5)


def backward(dy, w):
    random.random()
    dy += 1
    return dy * w, lambda x: x * w


@pytest.mark.parametrize(("text", "w", "alike"), [
    ("def backward(dy, w):\n    random.random()\n    dy += 1\n    return w * dy, lambda x: w * x", 2.0, True),
    ("def backward(dy, w):\n    dy += 1\n    return dy / w, lambda x: x / w", 1.0, True),
    ("def backward(dy, w):\n    dy += 1\n    return dy / w, lambda x: x / w", 2.0, False),
    ("def backward(dy, w):\n    dy += 1\n    return dy * w, lambda x: x / w", 2.0, False),     # in what it returns
    ("def backward(dy, w):\n    dy = dy + 1\n    return dy * w, lambda x: x * w", 2.0, False),  # in what it changes
    ("def backward(dy, w):\n    raise TypeError('dy')", 2.0, False),
])
def test_a_mutant_is_compared_call_by_call(text, w, alike):
    kept = copied(backward)
    comparison = Comparison(backward, kept, text)
    try:
        for _ in range(3):
            dy = np.ones(4)
            try:
                y, back = backward(dy, w)
            except TypeError:
                continue
            back(np.ones(3))
            expected = copied(rebuilt(kept, text))(np.ones(4), w)[0]
            np.testing.assert_array_equal(y, expected)                              # the caller gets the mutant's
    finally:
        backward.__code__ = kept.__code__
    assert comparison.alike == alike
    assert comparison.calls >= 3


@pytest.mark.parametrize(("a", "b", "equal"), [
    (np.array([1.0, np.nan]), np.array([1.0, np.nan]), True),
    (np.ones(2), np.ones(2, np.float32), False),
    (np.ones((1, 2)), np.ones(2), False),
    (1, 1.0, False),
    (float("nan"), float("nan"), True),
    ((1, [2.0, None]), (1, [2.0, None]), True),
    ({"x": np.ones(2)}, {"x": np.zeros(2)}, False),
    (np.array([1, "a"], object), np.array([1, "b"], object), False),
    (Layer(), Layer(), True),
])
def test_values_that_are_the_same(a, b, equal):
    assert same(a, b) is equal
