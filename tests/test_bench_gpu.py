"""The benchmarks of a GPU: their counts, and that they run on the stand-in for CuPy.  Nothing is timed."""
import json
import re
import textwrap

import numpy as np
import pytest

from bench import gpu_roofline
from bench import ops as bench_ops
from bench.gpu_roofline import SIZES, Card, Work, calls, passes, step
from bench.traffic import axes
from pyllama import cuda_text
from pyllama.op import OPS
from pyllama.testing.accuracy import is_computed
from pyllama.testing.passes import is_float
from pyllama.testing.problems import packed
from tests.another import ROOT, python
from tests.fakecupy import rules


def test_every_kernel_file_has_its_passes():
    for file in cuda_text.files():
        assert file in passes(SIZES["M"])
        if file in OPS:
            assert f"{file}_backward" in passes(SIZES["M"])


@pytest.mark.parametrize("size", SIZES)
def test_a_step_s_products_are_six_a_token_and_weight(size):
    """And those of attention: see test_bench.py for what bench.sizes counts, which is its least; here 9 products are
    made where 6 are needed, over a triangle that has its diagonal."""
    c, work = SIZES[size], passes(SIZES[size])
    of = {name: times * work[name].operations for name, times in calls(c).items()}
    attention = of["attention"] + of["attention_backward"]
    assert sum(of.values()) - attention == c.flops - 6 * c.tokens * c.L * c.T * c.D
    assert attention == c.L * 9 * c.B * c.D * c.T * (c.T + 1)
    assert set(calls(c)) <= set(work)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.name in passes(SIZES["tiny"]) or op.name == "linear"],
                         ids=lambda op: op.name)
def test_each_pass_moves_what_it_is_given_and_what_it_makes(op):
    """Within a tenth, where there are no products: weights of a norm and the like are not counted.  Products move more,
    for their factors and results pass between launches."""
    asked, rng = bench_ops.request(op, axes(SIZES["tiny"])), np.random.default_rng(0)
    xs = [rng.integers(0, bound, shape) if bound else rng.standard_normal(shape) for shape, bound in asked["inputs"]]
    dy = packed(rng.standard_normal(shape) for shape in asked["dys"])
    y, saved = op.forward(*xs, **asked["options"])
    grads = op.backward(dy, *saved, **asked["options"])
    moved = {"": [*xs, *op.each(y), *(a for a in saved if is_computed(a, xs))],
             "_backward": [*op.each(dy), *saved, *grads]}
    for of, arrays in moved.items():
        numbers = sum(a.size for a in {id(a): a for a in arrays if isinstance(a, np.ndarray) and is_float(a)}.values())
        work = passes(SIZES["tiny"])[op.name + of + " F D" * (op.name == "linear")]
        assert 0.9 * numbers <= work.bytes / 4
        assert work.operations or "linear" in op.name or work.bytes / 4 <= 1.1 * numbers


def test_the_slower_of_the_two_bounds():
    card = Card(bytes=100.0, operations=10.0)
    assert (Work(400, 10).seconds(card), Work(400, 10).bound(card)) == (4.0, "memory")
    assert (Work(400, 50).seconds(card), Work(400, 50).bound(card)) == (5.0, "products")
    assert {row["share"] for row in gpu_roofline.rows("S") if row["calls"] is None} == {None}
    assert sum(row["share"] or 0 for row in gpu_roofline.rows("S")) == pytest.approx(1)


def test_the_figures_of_the_page_are_those_of_the_command():
    """To three digits."""
    page = (ROOT / "docs/gpu.md").read_text()
    for name in ("S", "M", "1B"):
        (row,) = re.findall(rf"^\| {name}: .*", page, re.MULTILINE)
        said = [float(figure.replace(",", "")) for figure in re.findall(r"([\d,]+) tokens/s", row)]
        assert said == pytest.approx([SIZES[name].tokens / seconds for seconds in step(SIZES[name]).values()], rel=5e-3)


def on_the_stand_in(body):
    """Run it where `import cupy` gives the stand-in and bench.gpu is small."""
    return python("-c", textwrap.dedent("""
        import json, sys
        from tests import fakecupy
        with fakecupy.installed():
            import cupy
            from bench import gpu
            gpu.PRODUCT, gpu.COPY, gpu.STEPS = 64, 4096, 2
        """) + textwrap.indent(textwrap.dedent(body), "    "))


def test_the_bench_runs_to_its_end():
    rules.real()
    ran = on_the_stand_in("""
        flags = ["--sizes", "tiny", "--problems", "1", "--rounds", "2", "--json"]
        assert gpu.main(["rms_norm", "linear", *flags]) == 0
        like = cupy.empty(0)
        print(json.dumps(gpu.learns_alike(like)))
        print(json.dumps(gpu.trained("tiny", gpu.Clock(cupy), like)))
        """)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    checks = [row for row in rows if "bits" in row]
    assert [(row["op"], row["precision"]) for row in checks] == [
        ("rms_norm", "float64"), ("rms_norm", "float32"), ("training", "float32")]
    assert all(row["error"] < 1 and row["bits"] in (True, None) for row in checks)
    assert {(row["op"], row["of"], row["by"]) for row in rows if "us" in row} == {
        ("rms_norm", of, by) for of in ("forward", "backward") for by in ("cuda", "cupy")} | {
        ("linear", of, "cupy") for of in ("forward", "backward")}
    assert all(row["us"] > 0 and row["share"] > 0 for row in rows if "us" in row)
    assert rows[-1]["parameters"] == gpu_roofline.parameters(SIZES["tiny"])


@pytest.mark.parametrize("patch", [
    "lambda x, w, *, eps=1e-5: ((made := right(x, w, eps=eps))[0] * (1 + 1e-4), made[1])",
    "lambda x, w, *, eps=1e-5: ((made := right(x, w, eps=eps))[0] + next(count) * 1e-14, made[1])",
], ids=["wrong", "other bits"])
def test_nothing_is_timed_where_something_is_wrong(patch):
    rules.real()
    ran = on_the_stand_in(f"""
        import itertools
        from pyllama import cuda
        right, count = cuda.rms_norm, itertools.count()
        cuda.rms_norm = {patch}
        sys.exit(gpu.main(["rms_norm", "--sizes", "tiny", "--problems", "3", "--json"]))
        """)
    assert (ran.returncode, len(ran.stdout.splitlines())) == (1, 2)
    assert "rms_norm in float64 is wrong or gives other bits when run again; nothing was timed" in ran.stderr


def test_without_a_gpu_it_says_so():
    ran = python("-c", "import sys; sys.modules['cupy'] = None; from bench import gpu; sys.exit(gpu.main([]))")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("bench/gpu.py: a GPU needs cupy, which is not installed")
