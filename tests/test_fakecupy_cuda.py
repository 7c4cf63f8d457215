"""The stand-in for CuPy: its names, its cupy.cuda, its kernels, and a training step on its arrays."""
import inspect
import sys

import numpy as np
import pytest

from pyllama import backend, params
from pyllama.models import llama
from pyllama.op import OPS
from pyllama.rng import Draw
from pyllama.testing.problems import EDGES, SMALL, Sizes
from pyllama.testing.strategies import SmallFirst
from pyllama.training.optim import AdamW, clip_scale, global_norm, matrix_slices
from tests import fakecupy, gpu
from tests.cuda_on_cpu import KernelError
from tests.cuda_on_cpu.build import missing
from tests.fakecupy import rules
from tests.test_fakecupy import HOST, on_the_stand_in


@pytest.mark.parametrize("place", [
    "", "ndarray", "RawModule", "RawKernel", "cuda", "cuda.runtime", "cuda.Device", "cuda.Stream", "cuda.Event",
    "cuda.MemoryPool", "cuda.PinnedMemoryPool"])
def test_what_is_written_out_has_cupy_s_names_and_parameters(place):
    mine, real = fakecupy.module(), rules.real()
    for name in place.split(".") if place else ():
        mine, real = getattr(mine, name), getattr(real, name)
    for name, f in vars(mine).items():
        if not name.startswith("_"):
            there = getattr(real, name)
            if inspect.isfunction(f):
                assert parameters(inspect.signature(f)) == parameters(rules.signature(there)), name


def parameters(signature):
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


KERNELS = """
extern "C" __global__ void scale(float *y, const float *x, double a, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = (float)a * x[i];
}
extern "C" __global__ void last(float *y) { y[0] = (float)blockIdx.x; }
"""
needs_compiler = pytest.mark.skipif(bool(missing), reason=f"the executor needs {missing}")


@needs_compiler
def test_kernels_run_on_device_arrays():
    x = on_the_stand_in()
    scale = x.cp.RawModule(code=KERNELS, options=("-std=c++17",)).get_function("scale")
    y = x.cp.empty_like(x.a)
    with fakecupy.counting() as counts:
        scale((2,), (16,), (y, x.a, 3.0, x.a.size))
        scale((1,), (32,), (y[1:], x.a, 2.0, 5), shared_mem=16, stream=x.cp.cuda.Stream())
    assert counts == fakecupy.Counts(launches=2)
    np.testing.assert_array_equal(y.get(), np.concatenate([3 * HOST[:1], 2 * HOST[:1], 3 * HOST[2:]]))


@needs_compiler
@pytest.mark.parametrize("launch", [
    lambda k, y, x: k((1,), (32,), (y, x, 1, 20)),                          # an int where a double is wanted
    lambda k, y, x: k((1,), (32,), (y, x, True, 20)),
    lambda k, y, x: k((1,), (32,), (y, x.astype("d"), 1.0, 20)),
    lambda k, y, x: k((1,), (32,), (y, x, 1.0)),
    lambda k, y, x: k((0,), (32,), (y, x, 1.0, 0)),
    lambda k, y, x: k(1, (32,), (y, x, 1.0, 20)),
    lambda k, y, x: k((1,), (2048,), (y, x, 1.0, 20)),
    lambda k, y, x: k((1,), (32,), (y, x, 1.0, 20), shared_mem=49 * 1024),
])
def test_a_launch_that_goes_wrong_on_a_device_is_refused(launch):
    x = on_the_stand_in()
    scale = x.cp.RawKernel(KERNELS, "scale")
    with pytest.raises((TypeError, KernelError)):
        launch(scale, x.cp.empty_like(x.a), x.a)


@needs_compiler
@pytest.mark.parametrize("what", [HOST, None, HOST.tolist(), memoryview(HOST)], ids=type)
def test_an_argument_that_is_not_on_the_device_is_refused(what):
    x = on_the_stand_in()
    with fakecupy.counting() as counts, pytest.raises(TypeError, match="scale: argument 1 is a "):
        x.cp.RawKernel(KERNELS, "scale")((1,), (32,), (x.a, what, 1.0, 20))
    assert counts == fakecupy.Counts()


@needs_compiler
def test_more_shared_memory_is_to_be_asked_for():
    x = on_the_stand_in()
    scale = x.cp.RawKernel(KERNELS, "scale")
    assert scale.max_dynamic_shared_size_bytes == 48 * 1024
    scale.max_dynamic_shared_size_bytes = 64 * 1024
    scale((1,), (32,), (x.cp.empty_like(x.a), x.a, 1.0, x.a.size), shared_mem=64 * 1024)
    scale.max_dynamic_shared_size_bytes = 256 * 1024
    with pytest.raises(KernelError):
        scale((1,), (32,), (x.cp.empty_like(x.a), x.a, 1.0, x.a.size))


@needs_compiler
def test_each_launch_has_an_order_of_its_own(monkeypatch):
    cupy = fakecupy.module()
    last, y = cupy.RawKernel(KERNELS, "last"), cupy.zeros(1, "f")

    def winners():
        for _ in range(8):
            last((8,), (1,), (y,))
            yield float(y[0])

    assert len({*winners()}) > 1
    monkeypatch.setattr(fakecupy, "order", "forward")
    assert {*winners()} == {7.0}


@needs_compiler
def test_the_checked_build_is_a_switch_away(monkeypatch):
    cupy = fakecupy.module()
    last, y = cupy.RawKernel(KERNELS, "last"), cupy.zeros(1, "f")
    last((8,), (1,), (y,))
    monkeypatch.setattr(fakecupy, "checked", True)
    with pytest.raises(KernelError, match="kernel last") as raised:
        last((8,), (1,), (y,))
    assert f"seed {fakecupy.seed}" in raised.value.__notes__[0]


def test_installed_means_imported():
    real, _ = rules.real(), rules.real("cupyx")
    before = {name: there for name, there in sys.modules.items() if name.startswith("cupy")}
    assert before["cupy"] is real
    with fakecupy.installed() as cupy:
        import cupy as imported
        import cupy.cuda.runtime
        assert imported is cupy is fakecupy.module()
        assert cupy.cuda.runtime.getDeviceCount() == 1
        assert cupy.cuda.is_available()
        with pytest.raises(ImportError):
            import cupy.cuda.nccl
        assert not hasattr(cupy.cuda, "nccl")
    assert {name: there for name, there in sys.modules.items() if name.startswith("cupy")} == before


def test_memory_is_given_back():
    cupy = fakecupy.module()
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    row = cupy.zeros((4, 64), "f")[1]
    assert pool.used_bytes() == before + 1024           # a view keeps all of it
    del row
    assert pool.used_bytes() == before


def test_pinned_memory_holds_host_arrays():
    cupy = fakecupy.module()
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(80), "f", 20).reshape(4, 5)
    x = cupy.asarray(HOST)
    with cupy.cuda.Stream(non_blocking=True) as stream, fakecupy.counting() as counts:
        assert cupy.cuda.get_current_stream() is stream
        x.get(out=pinned, blocking=False)
        start, end = stream.record(), stream.record()
        end.synchronize()
    assert cupy.cuda.get_current_stream() is cupy.cuda.Stream.null
    assert cupy.cuda.get_elapsed_time(start, end) >= 0
    assert counts == fakecupy.Counts(syncs=1, d2h=1, d2h_bytes=80)
    np.testing.assert_array_equal(pinned, HOST)


def test_there_is_one_device():
    cupy = fakecupy.module()
    with cupy.cuda.Device(0) as device:
        assert device.id == cupy.cuda.runtime.getDevice() == 0
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError), cupy.cuda.Device(1):
        pass


def test_a_training_step_on_device_arrays_is_the_host_s():
    """Loss, gradient, clipping and AdamW by the references: what is left where there are no kernels."""
    c = llama.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                          num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, resid_pdrop=0.1)
    ids = np.random.default_rng(0).integers(50, size=(3, 9))
    cupy = fakecupy.module()

    def step(move):
        flat, p = params.flatten(params.rebuild(start, (move(a) for _, a in params.leaves(start))))
        gradient, optimizer = np.zeros_like(flat), AdamW(flat.size, flat.dtype, matrices=matrix_slices(p))
        optimizer.m, optimizer.v = move(optimizer.m), move(optimizer.v)
        loss, back = llama.loss(move(ids), move(ids), p, c, draw=Draw((1,)))
        grads = params.over(gradient, p)
        with fakecupy.counting() as counts, params.adding(p, grads):
            params.add(grads, back())
        norm = global_norm(gradient)
        optimizer.step(flat, gradient, 1e-2, decay=0.1, scale=clip_scale(norm, 1.0))
        return counts, float(loss), norm, gradient, flat

    start = llama.init(c, dtype="float64")
    with backend.use("numpy"):
        _, *expected = step(lambda a: a)
        counts, *got = step(cupy.asarray)
    assert counts.syncs == 0                            # back waits for nothing
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(cupy.asnumpy(a), b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [Sizes, SmallFirst])
def test_every_test_draws_few_blocks_on_the_stand_in(monkeypatch, kind):
    """A kind of sizes that listed its candidates itself would give each test of attention thousands of blocks."""
    monkeypatch.setattr(Sizes, "candidates", gpu.few_blocks)
    sizes = kind(choose=max)
    assert max(sizes.candidates("G")) == max(SMALL)
    assert max(sizes.candidates("N")) == max(EDGES)
    assert 0 in sizes.candidates("B")
    assert max(sizes.candidates("T")) == max(EDGES)


@pytest.mark.parametrize(("name", "most"), [("linear_cross_entropy", 65), ("cross_entropy", max(EDGES))])
def test_few_rows_are_drawn_of_the_loss_whose_rows_are_blocks_of_many_threads(monkeypatch, name, most):
    """An axis N of another op reaches the edges of blocks."""
    monkeypatch.setattr(Sizes, "candidates", gpu.few_blocks)
    assert max(SmallFirst(max, declared=OPS[name].inputs).candidates("N")) == most
