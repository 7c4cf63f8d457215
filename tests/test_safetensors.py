"""Files of tensors: the library of that name reads ours, we read its, and no header takes memory."""
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from pyllama.errors import UserError
from pyllama.formats.safetensors import READ, read_tensors, to_safetensors

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=9).filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw):
    def array(dtype):
        shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        raw = draw(st.binary(min_size=9, max_size=9)) * (1 + np.dtype(dtype).itemsize * int(np.prod(shape)) // 9)
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        a = np.frombuffer(raw[:size], np.uint8)
        return (a % 2 if dtype.kind == "b" else a).view(dtype).reshape(shape)

    return {name: array(draw(st.sampled_from(list(READ.values())))) for name in draw(st.sets(NAMES, max_size=5))}


def same(got, want):
    assert got.keys() == want.keys()
    for name, a in want.items():
        assert (got[name].dtype, got[name].shape) == (a.dtype, a.shape)
        assert got[name].tobytes() == a.tobytes()
        assert got[name].flags.writeable


@given(tensors=tensors())
def test_both_read_what_both_write(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "model.safetensors"
    ours = b"".join(map(bytes, to_safetensors(tensors)))
    path.write_bytes(ours)
    same(read_tensors(path), tensors)
    same(read_tensors(path, mapped=True), tensors)
    known = {name: a for name, a in tensors.items() if a.dtype != ml_dtypes.bfloat16}         # the library knows these
    path.write_bytes(save(known))
    same(read_tensors(path), known)
    if len(known) == len(tensors):
        assert {name: a.tobytes() for name, a in load(ours).items()} == {name: a.tobytes() for name, a in known.items()}


def written(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(("header", "reason"), [
    ({}, "it has 8 bytes of tensors, but its header says 0"),
    (entry(shape=(3,)), r"w of float32\[3\] does not fill bytes 0 to 8"),
    (entry(shape=(2**62, 2**62)), r"w of float32.* does not fill bytes 0 to 8"),
    (entry(shape=(2**40,), offsets=(0, 2**42)), "it has 8 bytes of tensors, but its header says 4,398,046,511,104"),
    (entry(offsets=(4, 12)), "does not fill bytes 4 to 12"),
    (entry(offsets=(8, 0)), "does not fill bytes 8 to 0"),
    (entry() | {"again": entry()["w"]}, "again of float32.*|w of float32.*"),
    (entry(shape=(-2,)), "not made of whole numbers"), (entry(shape=(True, 2)), "not made of whole numbers"),
    (entry(shape=(2.0,)), "not made of whole numbers"), (entry(shape="2"), "not made of whole numbers"),
    (entry(offsets=(0,)), "its header is not that of a safetensors file"),
    (entry(dtype=None), "w is of type None, which is not supported"),
    (entry(dtype="F8_E4M3", offsets=(0, 2)), "w is quantized in float8, which is not supported; convert"),
    (entry(dtype="I128"), "w is of type I128"), (entry(dtype=[]), "its header is not"),
    ({"w": None}, "its header is not"), ([], "its header is not"), (b"{", "its header is not"),
    (b"\xff", "its header is not"), (b"[" * 100_000, "nested too deeply"),
    (b'{"w": ' * 50_000, "nested too deeply"),
])
def test_a_header_that_does_not_fit_the_file_is_refused_before_memory_is_allocated(header, reason, tmp_path):
    path = written(tmp_path / "model.safetensors", header, bytes(8))
    tracemalloc.start()
    with pytest.raises(UserError, match=f"model.safetensors cannot be read: .*({reason})"):
        read_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"1234567", b"\x80\x02}q\x00.", bytes(8), b"\xff" * 8 + b"{}"])
def test_what_is_not_such_a_file_is_refused(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(path)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="cannot be read"):
            read_tensors(path)


def test_bfloat16_is_read(tmp_path):
    path = written(tmp_path / "w", entry("BF16", (2,), (0, 4)), np.array([1.5, -2], ml_dtypes.bfloat16).tobytes())
    assert read_tensors(path)["w"].astype(float).tolist() == [1.5, -2]
