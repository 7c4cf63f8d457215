"""The stand-in for CuPy: what CuPy refuses it refuses, what CuPy does it does, and what CuPy hides it counts.

Where there is a GPU the tables hold the real CuPy to the same.  Where there is none its arrays are made of an address
that nothing reads: views and much of what it refuses show all the same, the rest ends when it asks for the driver.
"""
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests import fakecupy
from tests.cuda_on_cpu import memory
from tests.fakecupy import rules

HOST = np.linspace(-2, 2, 20, dtype="f").reshape(4, 5)
IDS, MASK = np.array([2, 0, 2]), np.array([True, False, True, False])


class On(NamedTuple):
    """What the cases of the tables are functions of."""
    cp: ModuleType
    a: Any                                              # HOST,
    ids: Any                                            # IDS
    mask: Any                                           # and MASK there


def on_the_host():
    return On(np, *(x.copy() for x in (HOST, IDS, MASK)))


def on_the_stand_in():
    cupy = fakecupy.module()
    return On(cupy, *map(cupy.asarray, (HOST, IDS, MASK)))


def on_the_real_one():
    """Without a GPU, on arrays whose memory nobody may touch."""
    cupy = rules.real()

    def hollow(x):
        there = cupy.cuda.UnownedMemory(2 ** 20, 2 ** 20, owner=None, device_id=0)
        return cupy.ndarray(x.shape, x.dtype, cupy.cuda.MemoryPointer(there, 0))

    return On(cupy, *map(cupy.asarray if cupy.cuda.is_available() else hollow, (HOST, IDS, MASK)))


def of_the_real_one(f):
    """What f makes, or the exception it ends with; None if that takes a GPU to know."""
    x = on_the_real_one()
    try:
        return f(x)
    except (x.cp.cuda.runtime.CUDARuntimeError, ImportError):
        return None
    except Exception as error:
        return error


REFUSED = {
    "np.asarray": (TypeError, lambda x: np.asarray(x.a)),
    "np.ascontiguousarray": (TypeError, lambda x: np.ascontiguousarray(x.a)),
    "device + host": (TypeError, lambda x: x.a + HOST),
    "host + device": (TypeError, lambda x: HOST + x.a),
    "host += device": (TypeError, lambda x: HOST.copy().__iadd__(x.a)),
    "host @ device": (TypeError, lambda x: HOST.T @ x.a),
    "a 0-d host array": (TypeError, lambda x: x.a * np.array(2.0)),
    "host in concatenate": (TypeError, lambda x: np.concatenate([x.a, HOST])),
    "host in where": (TypeError, lambda x: np.where(x.a, x.a, HOST)),
    "host into a slice": (ValueError, lambda x: x.a.__setitem__(slice(None), HOST)),
    "list into a slice": (ValueError, lambda x: x.a.__setitem__(0, [1, 2, 3, 4, 5])),
    "host in copyto": (ValueError, lambda x: np.copyto(x.a, HOST)),
    "a ufunc of a list": (TypeError, lambda x: x.cp.exp([1.0])),
    "a ufunc of the host's": (TypeError, lambda x: x.cp.exp(HOST)),
    "device * list": (TypeError, lambda x: x.a * [1, 2, 3, 4, 5]),
    "where= of a ufunc": (TypeError, lambda x: np.exp(x.a, where=x.a)),
    "where= of sum": (TypeError, lambda x: np.sum(x.a, where=x.a)),
    "initial= of sum": (TypeError, lambda x: np.sum(x.a, initial=0)),
    "initial= of the method": (TypeError, lambda x: x.a.max(initial=0)),
    "mode= of take": (TypeError, lambda x: x.a.take(x.ids, mode="clip")),
    "full with like=": (TypeError, lambda x: np.full(3, 0.5, like=x.a)),            # NumPy hands on a device=
    "like= of CuPy's own": (TypeError, lambda x: x.cp.zeros(3, like=x.a)),
    "casting= of astype": (TypeError, lambda x: x.a.astype("d", casting="unsafe")),
    "reduce": (NotImplementedError, lambda x: np.maximum.reduce(x.a)),
    "multiply.at": (NotImplementedError, lambda x: np.multiply.at(x.a, x.ids, 2.0)),
    "subtract.at of floats": (TypeError, lambda x: np.subtract.at(x.a, x.ids, 2.0)),
    "add.at of complex": (TypeError, lambda x: np.add.at(x.a.astype("F"), x.ids, 2.0)),
    "add.at of a tuple": (TypeError, lambda x: np.add.at(x.a, (x.ids, x.ids), 1.0)),
    "a function CuPy lacks": (TypeError, lambda x: np.insert(x.a, 0, 1.0)),
    "a ufunc CuPy lacks": (TypeError, lambda x: np.spacing(x.ids, x.ids)),
    "hypot of complex": (TypeError, lambda x: np.hypot(x.a.astype("F"), x.a)),
    "int += float": (TypeError, lambda x: x.ids.__iadd__(0.5)),
    "object": (ValueError, lambda x: x.cp.zeros(3, object)),
    "longdouble": (ValueError, lambda x: x.cp.asarray(np.ones(3, np.longdouble))),
    "text": (ValueError, lambda x: x.cp.asarray(["a"])),
    "set another dtype": (TypeError, lambda x: x.a.set(HOST.astype("d"))),
    "set a list": (TypeError, lambda x: x.a.set(HOST.tolist())),
    "set another shape": (ValueError, lambda x: x.a.set(HOST[:1])),
    "set a strided array": (RuntimeError, lambda x: x.a[:, ::2].set(HOST[:, ::2])),
    "range": (TypeError, lambda x: range(x.ids[0])),
    "item of many": (ValueError, lambda x: x.a.item()),
    "bool of many": (ValueError, lambda x: bool(x.a)),
    "len of one": (TypeError, lambda x: len(x.a[0, 0])),
    "iterate over one": (TypeError, lambda x: iter(x.a[0, 0])),
    "hash": (TypeError, lambda x: hash(x.a)),
    "an index too large": (IndexError, lambda x: x.a[4]),
    "a mask too long": (IndexError, lambda x: x.a[:3][x.mask]),
    "an index of floats": (IndexError, lambda x: x.a[x.a]),
    "flags.writeable": (AttributeError, lambda x: x.a.flags.writeable),
    "ctypes": (AttributeError, lambda x: x.a.ctypes),
    "code by position": (TypeError, lambda x: x.cp.RawModule("")),
    "options in a list": (TypeError, lambda x: x.cp.RawModule(code="", options=["-Dreal=float"])),
    **{f"no {name}": (AttributeError, lambda x, name=name: getattr(x.cp, name)) for name in (
        "errstate", "seterr", "frompyfunc", "memmap", "nditer", "geomspace", "einsum_path", "float128", "object_")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cupy_refuses_is_refused(name):
    error, f = REFUSED[name]
    with pytest.raises(error):
        f(on_the_stand_in())


def test_the_real_one_refuses_it_too():
    outcomes = {name: of_the_real_one(f) for name, (_, f) in REFUSED.items()}
    known = {name: type(outcome) for name, outcome in outcomes.items() if outcome is not None}
    assert known == {name: REFUSED[name][0] for name in known}
    assert len(known) >= len(REFUSED) / 2


VIEWS = {
    "whole": lambda x: x.a,
    "row": lambda x: x.a[1],
    "number": lambda x: x.a[1, 2],
    "slice": lambda x: x.a[1:3],
    "steps": lambda x: x.a[1:, ::2],
    "backwards": lambda x: x.a[::-1, ::-2],
    "nothing": lambda x: x.a[2:2],
    "new axes": lambda x: x.a[None, :, None],
    "ellipsis": lambda x: x.a[..., 3],
    "of a view": lambda x: x.a[1:][1:],
    "transpose": lambda x: x.a.T,
    "swapaxes": lambda x: x.a.reshape(2, 2, 5).swapaxes(0, 2),
    "moveaxis": lambda x: np.moveaxis(x.a.reshape(2, 2, 5), 0, -1),
    "reshape": lambda x: x.a.reshape(5, -1),
    "reshape a view": lambda x: x.a[1:3].reshape(2, 1, 5),
    "ravel": lambda x: x.a.ravel(),
    "squeeze": lambda x: x.a[:, :1].squeeze(1),
    "broadcast": lambda x: np.broadcast_to(x.a, (3, 4, 5)),
    "split": lambda x: np.split(x.a, 5, axis=-1)[2],
    "array_split": lambda x: np.array_split(x.a, 3)[1],
    "diagonal": lambda x: np.diagonal(x.a),
    "flip": lambda x: np.flip(x.a, 0),
    "other type": lambda x: x.a.view("i4"),
    "no cast": lambda x: x.a.astype("f", copy=False),
    "real": lambda x: x.a.real,
}


def layout(x, of):
    flags = x.flags
    return (x.shape, x.strides, x.dtype, flags.c_contiguous, flags.f_contiguous, flags.owndata, x is of, x.base is of,
            x.size and x.data.ptr - of.data.ptr)


@pytest.mark.parametrize("f", VIEWS.values(), ids=VIEWS)
def test_a_view_lies_where_cupy_s_lies(f):
    mine, real = on_the_stand_in(), on_the_real_one()
    view = f(mine)
    assert layout(view, mine.a) == layout(f(real), real.a)
    expected = f(On(np, HOST.copy(), IDS, MASK))
    np.testing.assert_array_equal(view.get(), expected)
    if view.dtype == "f" and view._host.flags.writeable:
        view[...] = 7
        assert np.sum(mine.a.get() == 7) == view.size


def in_place(x):
    x.a[1:3] += x.a[:2] * 2
    x.a[:, 1] -= x.a.mean(axis=-1)
    x.a[x.ids[:2]] *= 3
    x.a[x.mask] = 0
    x.a[3] = x.a[2]
    row = x.a[0]
    row /= 2
    return x.a


def added_at(x):
    np.add.at(x.a, x.ids, x.a[:3])
    return x.a


def matmul_in_place(x):
    y = x.a[:, :4]
    y @= y.T
    return y


WORKS = {
    "ufunc": lambda x: np.exp(x.a),
    "dtype=": lambda x: np.square(x.a, dtype="d"),
    "scalars": lambda x: 2.5 * x.a + np.float32(2) - 1 / (x.a + 7),
    "promotion": lambda x: x.a * np.float64(2) + x.ids[0],
    "a 0-d host array": lambda x: x.a > np.array(0.5),
    "powers": lambda x: (x.a * x.a) ** 0.5,
    "of a transpose": lambda x: np.exp(x.a.T),
    "matmul": lambda x: x.a @ x.a.T,
    "matmul in place": matmul_in_place,
    "einsum": lambda x: np.einsum("nd,md->nm", x.a, x.a[:2]),
    "where": lambda x: np.where(x.a > 0, x.a, 0),
    "sum": lambda x: np.sum(x.a, axis=0, keepdims=True),
    "sum of no axes": lambda x: np.sum(x.a, axis=()),
    "mean": lambda x: x.a.mean(),
    "max": lambda x: np.max(x.a.T, axis=-1),
    "argmax": lambda x: x.a.argmax(axis=1),
    "reduce": lambda x: np.add.reduce(x.a, axis=1),
    "norm": lambda x: np.linalg.norm(x.a),
    "cumsum": lambda x: np.cumsum(x.a, axis=0),
    "concatenate": lambda x: np.concatenate([x.a, x.a[:1]]),
    "stack": lambda x: np.stack([x.a, x.a], axis=-1),
    "pad": lambda x: np.tril(np.expand_dims(x.a, 0)),
    "zeros_like": lambda x: np.zeros_like(x.a, shape=()),
    "arange": lambda x: np.arange(3, like=x.a),
    "zeros": lambda x: np.zeros((2, 2), "f", like=x.a),
    "asarray": lambda x: np.asarray(HOST, dtype="d", like=x.a),
    "rows": lambda x: x.a[x.ids],
    "places": lambda x: x.a[x.ids, [0, 1, 2]],
    "columns": lambda x: x.a.T[:, x.ids],
    "masked": lambda x: x.a[x.mask],
    "list": lambda x: x.a[[0, 3]],
    "take_along_axis": lambda x: np.take_along_axis(x.a, x.a.argsort(axis=1)[:, ::-1], axis=1),
    "unique": lambda x: np.unique(x.ids),
    "nonzero": lambda x: x.a.nonzero()[1],
    "isfinite": lambda x: np.isfinite(x.a).all(),
    "astype": lambda x: x.a.T.astype("d"),
    "copied reshape": lambda x: x.a.T.reshape(2, -1),
    "in place": in_place,
    "at": added_at,
}


@pytest.mark.parametrize("name", WORKS)
def test_what_cupy_does_is_done(name):
    x = on_the_stand_in()
    y, expected = WORKS[name](x), np.asarray(WORKS[name](on_the_host()))
    assert type(y) is x.cp.ndarray
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y.get(), expected)


def test_the_real_one_does_it_too():
    for name, f in WORKS.items():
        y, expected = of_the_real_one(f), np.asarray(f(on_the_host()))
        if y is not None:                               # there is a GPU
            assert isinstance(y, rules.real().ndarray), (name, y)
            assert y.dtype == expected.dtype
            np.testing.assert_allclose(y.get(), expected, rtol=1e-5, atol=1e-6)     # float32, other exponentials


@pytest.mark.parametrize("name", sorted(WORKS.keys() - {"in place", "at"}))
def test_results_have_memory_of_their_own(name):
    """Guarded, in C order but where a layout is kept: what a kernel writes into a result changes nothing else."""
    x = on_the_stand_in()
    y = WORKS[name](x)
    assert y.base is None
    assert y.flags.c_contiguous == (name != "astype")
    memory.allocation_of(y._host)
    y.fill(0)
    np.testing.assert_array_equal(x.a.get(), HOST)


UNDEFINED = {
    "duplicates": lambda x: x.a.__setitem__(x.ids, x.a[:3]),
    "duplicates on two axes": lambda x: x.a.__setitem__((x.ids, x.ids), x.a[:3, 0]),
    "negative to unsigned": lambda x: x.a.astype("u4"),
    "nan to int": lambda x: (x.a / 0 * 0).astype(int),
    "too large": lambda x: (x.a * x.a * 100).astype("i1"),
    "nan into ints": lambda x: x.ids.fill(np.nan),
    "floats into ints": lambda x: x.ids.__setitem__(slice(3), x.a[0, :3] * 2 ** 80),
    "an index too large": lambda x: x.a[x.ids + 2],
    "take": lambda x: np.take(x.a, x.ids + 2, axis=0),
    "set with an index too large": lambda x: x.a.__setitem__(x.ids + 2, 0.0),
    "add.at an index too large": lambda x: np.add.at(x.a, x.ids + 2, 1.0),
    "onto itself": lambda x: x.a.__setitem__(slice(1, None), x.a[:-1]),
    "into a broadcast": lambda x: np.broadcast_to(x.a, (2, 4, 5)).__setitem__(0, 1.0),
    "an index 1.0": lambda x: x.a[1.0],
}


@pytest.mark.parametrize("f", UNDEFINED.values(), ids=UNDEFINED)
def test_what_cupy_leaves_undefined_is_refused(f):
    with pytest.raises((ValueError, IndexError)):
        f(on_the_stand_in())


def test_new_memory_is_poisoned():
    cupy = fakecupy.module()
    for made in (cupy.empty((2, 3), "f"), cupy.empty_like(cupy.zeros(5)), np.empty(3, "D", like=cupy.zeros(1))):
        assert cupy.isnan(made).all()
    assert (cupy.empty(3, "i4") == -1).all()
    assert cupy.empty_like(cupy.zeros((2, 3)).T).strides == (8, 24)


def branch(x):
    return 1 if (x.a > 0).any() else 0


COUNTS = {
    "nothing": (lambda x: np.exp(x.a) @ x.a.T, {}),
    "created": (lambda x: np.arange(3, like=x.a) + x.cp.zeros(3), {}),
    "a number sent": (lambda x: x.cp.asarray(2.0) * x.a, {}),
    "a number set": (lambda x: x.a.__setitem__((0, 0), 1.5), {}),
    "float": (lambda x: float(x.a.sum()), {"syncs": 1, "d2h": 1, "d2h_bytes": 4}),
    "int": (lambda x: int(x.ids[0]), {"syncs": 1, "d2h": 1, "d2h_bytes": 8}),
    "branch": (branch, {"syncs": 1, "d2h": 1, "d2h_bytes": 1}),
    "get": (lambda x: x.a[1:].get(), {"syncs": 1, "d2h": 1, "d2h_bytes": 60}),
    "asnumpy": (lambda x: x.cp.asnumpy(x.a), {"syncs": 1, "d2h": 1, "d2h_bytes": 80}),
    "tolist": (lambda x: x.ids.tolist(), {"syncs": 1, "d2h": 1, "d2h_bytes": 24}),
    "not waiting": (lambda x: x.a.get(blocking=False), {"d2h": 1, "d2h_bytes": 80}),
    "print": (lambda x: f"{x.ids}", {"syncs": 1, "d2h": 1, "d2h_bytes": 24}),
    "asarray": (lambda x: x.cp.asarray(HOST), {"h2d": 1, "h2d_bytes": 80}),
    "asarray of its own": (lambda x: x.cp.asarray(x.a), {}),
    "like=": (lambda x: np.asarray(HOST, dtype="d", like=x.a), {"h2d": 1, "h2d_bytes": 160}),
    "set": (lambda x: x.a.set(HOST), {"h2d": 1, "h2d_bytes": 80}),
    "an index of the host's": (lambda x: x.a[IDS], {"h2d": 1, "h2d_bytes": 24}),
    "values of the host's": (lambda x: x.a.__setitem__(x.ids[:2], 1.5), {}),
    "an index on the device": (lambda x: x.a[x.ids], {}),
    "mask": (lambda x: x.a[x.mask], {"syncs": 1}),
    "mask set": (lambda x: x.a.__setitem__(x.mask, 0), {"syncs": 1}),
    "where instead": (lambda x: np.where(x.mask[:, None], 0, x.a), {}),
    "nonzero": (lambda x: x.a.nonzero(), {"syncs": 1}),
    "flatnonzero": (lambda x: np.flatnonzero(x.mask), {"syncs": 1}),
    "unique": (lambda x: np.unique(x.ids), {"syncs": 1}),
    "stream": (lambda x: x.cp.cuda.get_current_stream().synchronize(), {"syncs": 1}),
    "event": (lambda x: x.cp.cuda.Stream.null.record().synchronize(), {"syncs": 1}),
    "device": (lambda x: x.cp.cuda.Device().synchronize(), {"syncs": 1}),
}


@pytest.mark.parametrize(("f", "expected"), COUNTS.values(), ids=COUNTS)
def test_copies_and_waits_are_counted(f, expected):
    x = on_the_stand_in()
    with fakecupy.counting() as counts:
        f(x)
    assert counts == fakecupy.Counts(**expected)


def test_hidden_copies_are_found_out():
    """By their number, and by cupyx.allow_synchronize, whose traceback shows the place."""
    def scaled_rows(x):
        return x.a[IDS] / max(x.a.max(), 1)

    x = on_the_stand_in()
    with fakecupy.counting() as counts:
        scaled_rows(x)
    assert counts == fakecupy.Counts(syncs=1, h2d=1, h2d_bytes=24, d2h=1, d2h_bytes=1)      # max() asks which is larger
    with fakecupy.installed():
        import cupyx
        with cupyx.allow_synchronize(False), pytest.raises(cupyx.DeviceSynchronized):
            scaled_rows(x)
