"""Layouts: the numbers of an array stay as they are, bit for bit, while its memory has the property of its name."""
import ctypes
import itertools

import ml_dtypes
import numpy as np
import pytest

from pyllama.testing.layouts import LAYOUTS, laid_out, repeated

SHAPES = [(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (3, 2, 4)]
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_, np.complex128, ">f8"]


def numbers(shape, dtype=float):
    """0, 1, 2, ...: no two entries are equal, so that a wrong order shows."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_keeps_shape_dtype_and_bits_in_memory_of_its_own(name):
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        x = numbers(shape, dtype)
        y = LAYOUTS[name](x)
        assert type(y) is np.ndarray, (shape, dtype)
        assert (y.shape, y.dtype, y.tobytes()) == (shape, dtype, x.tobytes())
        assert not np.shares_memory(x, y), (shape, dtype)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("bits", [[-0.0, -0.0], [0.0, -0.0], [np.nan, np.nan], [np.inf, -np.inf]], ids=str)
def test_a_layout_keeps_signs_of_zeros_and_numbers_that_are_not_finite(name, bits):
    assert LAYOUTS[name](np.array(bits)).tobytes() == np.array(bits).tobytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_memory_of_an_array_does_not_decide_its_layout(name):
    """The strides are those of the same array in C order."""
    x = numbers((3, 2, 4))
    strides = {other: LAYOUTS[name](lay_out(x)).strides for other, lay_out in LAYOUTS.items()}
    assert strides == dict.fromkeys(LAYOUTS, LAYOUTS[name](x).strides)


STRIDES = {                                                 # in numbers, of an array [3 2 4]
    "C": (8, 4, 1),
    "F": (1, 3, 6),
    "transposed": (8, 1, 2),
    "strided": (64, 16, 2),
    "sliced": (24, 12, 1),
    "negative": (-8, -4, -1),
    "broadcast": (8, 4, 1),
    "read-only": (8, 4, 1),
    "misaligned": (8, 4, 1),
}


def test_the_strides_are_those_of_the_name():
    x = numbers((3, 2, 4))
    strides = {name: tuple(stride // x.itemsize for stride in lay_out(x).strides) for name, lay_out in LAYOUTS.items()}
    assert strides == STRIDES


def test_only_read_only_and_broadcast_arrays_refuse_to_be_written_to():
    """Entries of a broadcast array share memory, so one write would change several."""
    x = numbers((3, 2))
    assert {name for name, lay_out in LAYOUTS.items() if not lay_out(x).flags.writeable} == {"read-only", "broadcast"}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_only_misaligned_arrays_are_misaligned(dtype):
    """Numbers of one byte are always aligned."""
    x = numbers((3, 2), dtype)
    odd = {name for name, lay_out in LAYOUTS.items() if not lay_out(x).flags.aligned}
    assert odd == ({"misaligned"} if x.itemsize > 1 else set())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_that_repeats_has_stride_0_when_broadcast(axis):
    x = repeated(numbers((3, 2, 4)), axis)
    strides = LAYOUTS["broadcast"](np.array(x)).strides
    assert [stride == 0 for stride in strides] == [i == axis for i in range(3)]


def test_equal_numbers_are_broadcast_along_all_axes():
    assert LAYOUTS["broadcast"](np.ones((3, 2))).strides == (0, 0)


def test_the_gaps_hold_numbers_of_the_array():
    """A function that is defined for positive numbers alone meets no other ones, wherever it reads."""
    x = numbers((3, 4)) + 1
    for name in ("strided", "sliced"):
        whole = LAYOUTS[name](x).base
        assert whole.size > x.size
        assert {*whole.ravel()} == {*x.ravel()}


def test_a_function_that_reads_the_memory_in_a_row_gets_other_numbers():
    """Such as a C kernel that takes an address and a size.  With negative strides it would read past the end."""
    x = numbers((3, 4))
    fooled = set()
    for name, lay_out in LAYOUTS.items():
        if name != "negative":
            y = lay_out(x)
            if ctypes.string_at(y.ctypes.data, y.nbytes) != x.tobytes():
                fooled.add(name)
    assert fooled == {"F", "transposed", "strided", "sliced"}


def test_a_function_gets_its_inputs_and_dys_in_other_layouts():
    seen = []

    def function(x, ids, n):
        seen.append((x.strides, ids.strides, n))
        return (x, 1.5), lambda dys: seen.append((dys[0].strides, dys[1]))

    x, ids = np.ones((2, 3)), np.arange(3)
    (y, half), back = laid_out(function, x="F", dy="strided")(x, ids, 7)
    back((np.ones((2, 3)), 0.5))
    assert seen == [((8, 16), (8,), 7), ((96, 16), 0.5)]
    assert (y == x).all()
    assert half == 1.5


def test_a_function_may_have_defaults_and_any_number_of_arguments():
    def strides(x, *others, w=None):
        return [a.strides[0] for a in (x, *others)]

    assert laid_out(strides, x="negative")(np.ones(2)) == [-8]
    assert laid_out(strides, x="negative")(np.ones(2), np.ones(2)) == [-8, 8]


@pytest.mark.parametrize(("layouts", "message"), [({"z": "F"}, "'z' is not a parameter; the parameters are x, w"),
                                                  ({"x": "f"}, "there is no layout 'f'; the layouts are C, F, "),
                                                  ({"dy": "f"}, "there is no layout 'f'; the layouts are C, F, ")])
def test_a_layout_that_would_not_be_used_is_refused(layouts, message):
    with pytest.raises(ValueError, match=message):
        laid_out(lambda x, w: x, **layouts)


def test_inputs_in_no_other_layout_are_the_same_arrays():
    """A function that writes to them can then be found out."""
    x = np.ones(3)
    y, back = laid_out(lambda x: (x, lambda dy: dy), dy="C")(x)
    assert y is x
    assert back(x) is x
