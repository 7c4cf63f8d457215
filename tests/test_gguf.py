"""GGUF files: those of the package gguf are read, ours are read there, and a damaged one is refused in a sentence."""
import contextlib
import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.files import DamagedFile
from pyllama.formats import gguf
from pyllama.quantization import blocks
from tests import ggufs

KINDS = {"f16", "bf16", "q8_0", "q4_0"}


def tensor(kind, *shape, seed=0):
    w = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    data = w.view(np.uint8) if kind == "F32" else blocks.encode(w.reshape(-1, shape[-1]), kind.lower())
    return gguf.Tensor(kind, shape, data.reshape(-1))


TENSORS = {"vector": tensor("F32", 5), "matrix": tensor("F32", 3, 7), "half": tensor("F16", 2, 5),
           "brain": tensor("BF16", 3, 3), "eight": tensor("Q8_0", 3, 64), "four": tensor("Q4_0", 2, 2, 32)}


def written(path, metadata, tensors):
    path.write_bytes(b"".join(gguf.to_gguf(metadata, tensors)))
    return path


def assert_same(file, metadata, tensors):
    assert file.metadata.keys() == metadata.keys()
    for key, value in metadata.items():
        assert_same_value(file.metadata[key], value)
    assert file.tensors.keys() == tensors.keys()
    for name, (kind, shape, data) in tensors.items():
        assert file.tensors[name][:2] == (kind, shape)
        np.testing.assert_array_equal(file.tensors[name].data, data)


def assert_same_value(value, expected):
    assert type(value) is type(expected)
    if isinstance(expected, list):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_same_value(one, other)
    else:
        np.testing.assert_array_equal(value, expected)
        assert getattr(value, "dtype", None) == getattr(expected, "dtype", None)


numbers = st.sampled_from([*gguf.NUMBERS.values()]).map(np.dtype)
scalars = numbers.flatmap(lambda dtype: st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize).map(
    lambda content: np.frombuffer(content, dtype)[0]))
arrays = numbers.flatmap(lambda dtype: st.binary(max_size=32).map(
    lambda content: np.frombuffer(content[:len(content) // dtype.itemsize * dtype.itemsize], dtype)))
flags = st.lists(st.booleans(), max_size=4).map(lambda flags: np.array(flags, bool))
values = st.booleans() | st.text(max_size=9) | scalars | arrays | flags | st.lists(st.text(max_size=5), max_size=4) | \
    st.lists(arrays, min_size=1, max_size=3)


@given(metadata=st.dictionaries(st.text(min_size=1, max_size=9), values, max_size=4),
       names=st.sets(st.sampled_from(sorted(TENSORS))))
def test_any_content_comes_back_as_it_was_written(tmp_path_factory, metadata, names):
    metadata.pop("general.alignment", None)
    tensors = {name: TENSORS[name] for name in names}
    assert_same(gguf.read(written(tmp_path_factory.getbasetemp() / "any.gguf", metadata, tensors)), metadata, tensors)


METADATA = {"general.architecture": "llama", "a.flag": True, "a.text": "é\n", "a.texts": ["a", "", "▁b"],
            "a.floats": np.array([0.5, -1], np.float32), "a.flags": np.array([True, False]),
            **{f"a.{kind.__name__}": np.dtype(kind).type(3) for kind in gguf.NUMBERS.values()}}


def test_the_package_gguf_reads_what_we_write(tmp_path):
    theirs = pytest.importorskip("gguf", reason="needs the package gguf to compare with")
    reader = theirs.GGUFReader(written(tmp_path / "ours.gguf", METADATA, TENSORS))
    assert reader.alignment == gguf.ALIGNMENT
    for key, value in METADATA.items():
        content = reader.get_field(key).contents()
        np.testing.assert_array_equal(content, value)
    assert [each.name for each in reader.tensors] == [*TENSORS]
    for each in reader.tensors:
        kind, shape, data = TENSORS[each.name]
        assert (each.tensor_type.name, tuple(each.shape)[::-1]) == (kind, shape)
        np.testing.assert_array_equal(each.data.reshape(-1).view(np.uint8), data)


def test_what_the_package_gguf_writes_is_read(tmp_path):
    theirs = pytest.importorskip("gguf", reason="needs the package gguf to compare with")
    writer = theirs.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for key, value in METADATA.items():
        if isinstance(value, np.generic):
            getattr(writer, f"add_{value.dtype.name}")(key, value.item())
        elif isinstance(value, bool | str) and key != "general.architecture":
            (writer.add_bool if isinstance(value, bool) else writer.add_string)(key, value)
        elif isinstance(value, list | np.ndarray):
            writer.add_array(key, value if isinstance(value, list) else value.tolist())
    writer.add_custom_alignment(64)
    for name, (kind, shape, data) in TENSORS.items():
        raw = data.view(np.float32).reshape(shape) if kind == "F32" else data.reshape(*shape[:-1], -1)
        writer.add_tensor(name, raw, raw_dtype=theirs.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same(gguf.read(tmp_path / "theirs.gguf"), METADATA | {"general.alignment": np.uint32(64)}, TENSORS)


def test_tensors_are_mapped_and_changes_stay_in_the_process(tmp_path):
    path = written(tmp_path / "mapped.gguf", METADATA, {"matrix": tensor("F32", 1024, 1024)})
    before = path.read_bytes()
    tracemalloc.start()
    file = gguf.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**18, "the matrix has 2**22 bytes"
    tracemalloc.stop()
    file.tensors["matrix"].data[:] = 0
    assert path.read_bytes() == before


# Damage

GOOD = ggufs.file([ggufs.key("general.architecture", 8, ggufs.text("llama")),
                   ggufs.key("numbers", 9, struct.pack("<IQ3I", 4, 3, 1, 2, 3)),
                   ggufs.key("texts", 9, struct.pack("<IQ", 8, 2) + ggufs.text("a") + ggufs.text("bc")),
                   ggufs.key("lists", 9, struct.pack("<IQIQB", 9, 1, 7, 1, 1))],
                  [ggufs.info("first", [3, 2]), ggufs.info("second", [32, 1], 8, 32)],
                  struct.pack("<6f", *range(6)).ljust(32, b"\0") + bytes(34))


def read(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return gguf.read(path)


def test_the_file_to_be_damaged_is_a_good_one(tmp_path):
    file = read(tmp_path, GOOD)
    assert [*file.metadata] == ["general.architecture", "numbers", "texts", "lists"]
    assert file.metadata["texts"] == ["a", "bc"]
    assert file.metadata["numbers"].tolist() == [1, 2, 3]
    assert file.metadata["lists"][0].tolist() == [True]
    assert file.tensors["first"].data.view(np.float32).tolist() == [*range(6)]
    assert read(tmp_path, GOOD.replace(b"GGUF\x03", b"GGUF\x02")).tensors.keys() == file.tensors.keys()


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    for length in range(len(GOOD)):
        with pytest.raises(DamagedFile, match=r"model\.gguf is not a (complete )?GGUF file.*; (fetch it|give another)"):
            pytest.fail(f"{length} bytes are read as {read(tmp_path, GOOD[:length])}")


def test_any_changed_byte_gives_another_file_or_a_sentence(tmp_path):
    for i in range(len(GOOD)):
        for change in (1, 16, 128, 255):
            changed = bytearray(GOOD)
            changed[i] ^= change
            with contextlib.suppress(UserError):
                file = read(tmp_path, changed)
                assert all(len(tensor.data) == gguf.bytes_of(tensor.kind, tensor.shape)
                           for tensor in file.tensors.values())


HUGE = 2**60
X = ggufs.info("x", [8])
ALIGNMENT = "general.alignment"


@pytest.mark.parametrize(("content", "message"), [
    (b"", "it ends within its first bytes"),
    (b"GGUX" + GOOD[4:], "does not begin with GGUF"),
    (GOOD[:4] + struct.pack(">I", 3) + GOOD[8:], "is big-endian, .*; convert it to little-endian"),
    (GOOD[:4] + struct.pack("<I", 1) + GOOD[8:], "of version 1, but versions 2 and 3 .*; convert the model again"),
    (GOOD[:4] + struct.pack("<I", 4) + GOOD[8:], "of version 4"),
    (GOOD[:4] + bytes(4) + GOOD[8:], "of version 0"),
    (ggufs.file(counts=(HUGE, 0)), "too short for 1,152,921,504,606,846,976 tensors"),
    (ggufs.file(counts=(0, HUGE)), "too short for 1,152,921,504,606,846,976 keys"),
    (ggufs.file([struct.pack("<Q", 2**48) + b"key"]), "key 1 would have 281,474,976,710,656 bytes"),
    (ggufs.file([ggufs.key("k" * 65536, 0, b"\0")]), "key 1 would have 65,536 bytes, but it must have 1 to 65,535"),
    (ggufs.file([ggufs.key("", 0, b"\0")]), "key 1 would have 0 bytes"),
    (ggufs.file([ggufs.key(b"\xff", 0, b"\0")]), "key 1 is not UTF-8"),
    (ggufs.file([ggufs.key("k", 13, b"\0")]), "k has the type 13, which does not exist"),
    (ggufs.file([ggufs.key("k", 8, struct.pack("<Q", 2**30))]), "it ends within k"),
    (ggufs.file([ggufs.key("k", 8, ggufs.text(b"\xc3"))]), "k is not UTF-8"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 0, 2**30))]), "it ends within k"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 7, HUGE))]), "it ends within k"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 8, 2**30))]), "too short for 1,073,741,824 values in k"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 8, 1) + ggufs.text(b"\xc3"))]), "k is not UTF-8"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQQ", 8, 3, 2**62) + bytes(99))]), "it ends within k"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 8, 2) + ggufs.text("a") + struct.pack("<Q", 99) + b"\xc3")]),
     "it ends within k"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 9, HUGE))]), "too short for .* values in k"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 99, 1))]), "k has the type 99, which does not exist"),
    (ggufs.file([ggufs.key("k", 9, struct.pack("<IQ", 9, 1) * 2000)]), "k has arrays in arrays, more than 4 deep"),
    (ggufs.file([ggufs.key("k", 0, b"\0")] * 2), "key 2 is 'k', as another one is"),
    (ggufs.file(infos=[X, X], data=bytes(64)), "the name of tensor 2 is 'x', as another one is"),
    (ggufs.file(infos=[ggufs.info("n" * 65, [8])], data=bytes(32)), "would have 65 bytes, but it must have 1 to 64"),
    (ggufs.file(infos=[ggufs.info("x", [])], data=bytes(32)), "x has 0 axes, but a tensor has 1 to 4"),
    (ggufs.file(infos=[ggufs.info("x", [1] * 5)], data=bytes(32)), "x has 5 axes"),
    (ggufs.file(infos=[ggufs.text("x") + struct.pack("<I", 2**32 - 1)], data=bytes(32)), "x has 4294967295 axes"),
    (ggufs.file(infos=[ggufs.info("x", [8, 0])], data=bytes(32)), r"x has the shape \[0, 8\], with an empty axis"),
    (ggufs.file(infos=[ggufs.info("x", [2**40, 2**40])], data=bytes(32)), r"x of F32\[1\d*, 1\d*\] would end at byte"),
    (ggufs.file(infos=[ggufs.info("x", [2**63, 2])], data=bytes(32)), "would end at byte"),
    (ggufs.file(infos=[ggufs.info("x", [9])], data=bytes(32)), r"x of F32\[9\] would end at byte 100, .* has 96"),
    (ggufs.file(infos=[ggufs.info("x", [33], 8)], data=bytes(68)), "rows of 33 numbers, which are not blocks of 32"),
    (ggufs.file(infos=[ggufs.info("x", [256], 12)], data=bytes(144)),
     "x of type Q4_K, which is not supported; store the original model by `pyllama quantize`, with dtype q8_0 or q4_0"),
    (ggufs.file(infos=[ggufs.info("x", [256], 77)], data=bytes(144)), "x of type 77, which is not supported"),
    (ggufs.file(infos=[X, ggufs.info("y", [8])], data=bytes(64)), "y is at byte 0 of the data, but .* end at 32"),
    (ggufs.file(infos=[ggufs.info("x", [8], 0, 32), ggufs.info("y", [8])], data=bytes(64)), "x is at byte 32"),
    (ggufs.file(infos=[X, ggufs.info("y", [8], 0, 36)], data=bytes(96)), "y is at byte 36"),
    (ggufs.file(infos=[ggufs.info("x", [8], 0, 2**64 - 32)], data=bytes(96)), "x is at byte 18,446,744,073,709,551,5"),
    *((ggufs.file([ggufs.key(ALIGNMENT, 4, struct.pack("<I", size))], [X], bytes(32)),
       f"general.alignment is {size}, but it must be a power of 2 from 8") for size in (0, 4, 7, 48, 2**30)),
    (ggufs.file([ggufs.key(ALIGNMENT, 8, ggufs.text("32"))], [X], bytes(32)), "general.alignment is 32, but"),
    (ggufs.file([ggufs.key(ALIGNMENT, 6, struct.pack("<f", math.nan))], [X], bytes(32)), "general.alignment is nan"),
    (ggufs.file([ggufs.key(ALIGNMENT, 9, struct.pack("<IQ2I", 4, 2, 32, 32))], [X], bytes(32)), "general.alignment is"),
])
def test_a_hostile_file_is_refused_in_a_sentence_and_takes_no_memory(content, message, tmp_path):
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"model\.gguf .*{message}") as raised:
        read(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert "; " in str(raised.value), "cause and cure"
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent\.gguf: No such file"):
        gguf.read(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="Is a directory"):
        gguf.read(tmp_path)
