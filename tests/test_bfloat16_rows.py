"""The kernels for bfloat16: their table, how they round, and what their bits do not depend on."""
import ctypes
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from pyllama import backend
from tests.another import python

cpu = backend.cpu
pytestmark = pytest.mark.skipif(cpu is None, reason=backend.why_no_cpu)

BFLOAT16 = ml_dtypes.bfloat16


def normal(shape, seed=0, dtype=BFLOAT16):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_every_op_that_takes_bfloat16_is_in_its_table():
    """An empty slot would end the process."""
    header = (Path(__file__).parents[1] / "csrc/kernels.h").read_text()
    fields = re.findall(r"^    (?:idx (\w+);|\w+ \(\*(\w+)\))", header[header.index("of every precision"):], re.M)
    names = [number or function for number, function in fields]
    tables = (ctypes.POINTER(ctypes.c_size_t * len(names)) * 3).in_dll(ctypes.CDLL(cpu.__file__), "kernels_of")
    filled = {name for name, slot in zip(names, tables[2].contents, strict=True) if slot}
    of_ops = {name for name in names if re.sub("_(backward|work)$", "", name) in cpu.LOW}
    assert of_ops <= filled
    assert "decode" not in filled


def hard_to_round():
    """Numbers in float32 at and about every midpoint of two bfloat16, at every exponent; what is not finite."""
    half = np.arange(0, 1 << 16, 3, dtype=np.uint32) << 16
    bits = (half[:, None] + np.array([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff], np.uint32)).ravel()
    return bits.view(np.float32)


def test_a_kernel_rounds_as_ml_dtypes_does():
    """Rows of ones have r = 1 where eps is 0, so that y is w, rounded."""
    w = hard_to_round()
    y, _ = cpu.rms_norm(np.ones((1, w.size), BFLOAT16), w, eps=0)
    with np.errstate(over="ignore", invalid="ignore"):
        nan, wanted = np.isnan(w), w.astype(BFLOAT16)
    np.testing.assert_array_equal(np.isnan(y[0].astype(np.float32)), nan)
    np.testing.assert_array_equal(y[0].view(np.uint16)[~nan], wanted.view(np.uint16)[~nan])


def test_what_does_not_take_bfloat16_says_so():
    x = np.ones(3, BFLOAT16)
    with pytest.raises(TypeError, match="float32 and float64, not bfloat16"):
        cpu.adamw(x, x, x, x, lr=0.1, decay=0, scale=1, t=1, betas=(0.9, 0.9), eps=1e-8)
    with pytest.raises(TypeError, match="float32 and float64, not bfloat16"):
        cpu.sum_and_norm([x])


@pytest.mark.parametrize("n", [1, 31, 33, 70_001])
def test_adamw_writes_the_rounded_parameters_too(n):
    """The update itself has the same bits as without the copy."""
    vectors = [normal(n, seed, "float32") for seed in range(4)]
    vectors[3] = np.abs(vectors[3])
    alone = [x.copy() for x in vectors]
    rounded, rule = np.zeros(n, BFLOAT16), dict(lr=0.1, decay=0.1, scale=0.5, t=3, betas=(0.9, 0.99), eps=1e-8)
    cpu.adamw(*alone, **rule)
    cpu.adamw(*vectors, **rule, rounded=rounded)
    assert all(map(np.array_equal, vectors, alone))
    np.testing.assert_array_equal(rounded, alone[0].astype(BFLOAT16))


@pytest.mark.parametrize(("rounded", "error", "why"), [
    (np.zeros(3, "float16"), TypeError, "must be bfloat16 and float32"),
    (np.zeros(4, BFLOAT16), ValueError, "the shapes must be equal"),
    (np.zeros(6, BFLOAT16)[::2], ValueError, "contiguous")])
def test_adamw_refuses_another_copy(rounded, error, why):
    vectors = [np.ones(3, "float32") for _ in range(4)]
    with pytest.raises(error, match=why):
        cpu.adamw(*vectors, lr=0.1, decay=0, scale=1, t=1, betas=(0.9, 0.9), eps=1e-8, rounded=rounded)
    assert all((x == 1).all() for x in vectors)
    doubles = [np.ones(3) for _ in range(4)]
    with pytest.raises(TypeError, match="must be bfloat16 and float32"):
        cpu.adamw(*doubles, lr=0.1, decay=0, scale=1, t=1, betas=(0.9, 0.9), eps=1e-8, rounded=np.zeros(3, BFLOAT16))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_total_is_added_in_float32_and_rounded_once(count):
    """In the order of the arrays: in another one, half of these sums differ."""
    arrays = [normal((3, 700), seed) for seed in range(count)]
    wide = sum((x.astype("float32") for x in arrays[1:]), arrays[0].astype("float32"))
    np.testing.assert_array_equal(cpu.total(arrays), wide.astype(BFLOAT16))
    np.testing.assert_array_equal(cpu.total([x.T for x in arrays]), wide.T.astype(BFLOAT16))


BITS = """
import hashlib
import ml_dtypes
import numpy as np
from pyllama import cpu

draw = np.random.default_rng(0).standard_normal
x, u, a = (draw((33, 300)).astype(ml_dtypes.bfloat16) for _ in range(3))
w, b = (draw(300).astype(np.float32) for _ in range(2))
for op, inputs, dy in ((cpu.rms_norm, (x, w), u), (cpu.add_rms_norm, (x, a, w), (a, u)), (cpu.layer_norm, (x, w, b), u),
                       (cpu.swiglu, (x, u), a), (cpu.gelu, (x,), u), (cpu.rope, (x,), u), (cpu.softmax, (x,), u)):
    y, saved = op(*inputs)
    ys = y if isinstance(y, tuple) else (y,)
    made = [*ys, *getattr(cpu, op.__name__ + "_backward")(dy, *saved)]
    print(op.__name__, hashlib.sha256(b"".join(array.tobytes() for array in made)).hexdigest())
"""


def test_wider_instruction_sets_change_no_bit_of_a_kernel_of_rows():
    """From avx512 on: below it, there are other vectors, so sums have another order."""
    runs = {isa: python("-c", BITS, PYLLAMA_ISA=isa) for isa in ("avx512", "avx512bf16", "amx")}
    bits = {run.stdout for isa, run in runs.items() if f"PYLLAMA_ISA={isa}" not in run.stderr}
    if not bits:
        pytest.skip("this build or processor has no avx512")
    assert len(bits) == 1
    assert bits.pop().count("\n") == 7
