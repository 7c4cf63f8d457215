"""Processes that share a batch train the model that one process alone would, and refuse what cannot work."""
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama import backend
from pyllama.errors import UserError
from pyllama.training import loop, parallel
from pyllama.training.run import BestSoFar, RunPolicy, run
from tests.test_train import CONFIG, HELD_OUT, SHORT, TEXT


class Together:
    """Threads of one process as communicators, who meet at a barrier and add in the order of their ranks."""

    def __init__(self, size):
        self.barrier, self.given = threading.Barrier(size), [None] * size
        self.all = [SimpleNamespace(rank=rank, size=size, stop=False, stopped=False,
                                    add=lambda x, rank=rank: self.add(rank, x)) for rank in range(size)]

    def add(self, rank, x):
        self.given[rank] = x.copy()
        self.barrier.wait(60)
        x[...] = sum(self.given)
        self.barrier.wait(60)


def learn(size, settings, job):
    """job(state, communicator) in `size` threads; their states."""
    group, states = Together(size), [loop.start(CONFIG, settings) for _ in range(size)]
    threads = [threading.Thread(target=job, args=pair) for pair in zip(states, group.all, strict=True)]
    before = backend.cpu.threads() if backend.cpu else None
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if before:
        backend.cpu.set_threads(before)
    return states


@given(size=st.integers(1, 4), rows=st.integers(1, 7), accumulate=st.integers(1, 2))
@settings(max_examples=5)
def test_processes_that_share_a_batch_learn_what_one_alone_would(size, rows, accumulate):
    """Dropout, clipping and a share without a row included; every rank has the same bits in the end."""
    chosen = replace(SHORT, batch_size=rows, gradient_accumulation_steps=accumulate, max_steps=3, shards=1,
                     max_grad_norm=0.1, dtype="float64")
    records = [[] for _ in range(size)]
    states = learn(size, chosen, lambda state, comm: records[comm.rank].extend(loop.train(state, TEXT, chosen, comm)))
    alone = loop.start(CONFIG, chosen)
    for i, record in enumerate(loop.train(alone, TEXT, chosen)):
        for mine in records:
            np.testing.assert_allclose((mine[i].loss, mine[i].grad_norm), (record.loss, record.grad_norm), rtol=1e-12)
    for state in states:
        np.testing.assert_array_equal(state.flat, states[0].flat)
        np.testing.assert_allclose(state.flat, alone.flat, rtol=0, atol=1e-10)


def test_the_first_writes_and_all_stop_together(tmp_path):
    chosen, steps = replace(SHORT, max_steps=40, learning_rate=1e-30, min_lr=0.0), [[], []]

    def job(state, comm):
        keeping = RunPolicy(eval_steps=2, save_steps=2, patience=2)
        for happening in run(tmp_path / str(comm.rank), state, TEXT, HELD_OUT, chosen, keeping, {}, None, BestSoFar(),
                             comm=comm):
            steps[comm.rank].append(happening.step)

    learn(2, chosen, job)
    assert steps[0] == steps[1] == list(range(1, 7))        # nothing is learned: two evaluations are no better
    assert (tmp_path / "0/latest").exists()
    assert not (tmp_path / "1").exists()


def test_a_process_that_is_asked_to_stop_stops_the_others():
    """In the same step: one that went on alone would wait for the others for ever."""
    chosen, steps = replace(SHORT, max_steps=40), [[], []]

    def job(state, comm):
        for record in loop.train(state, TEXT, chosen, comm):
            steps[comm.rank].append(record.step)
            comm.stop = comm.rank == 1 and record.step == 3
            if comm.stopped:
                break

    learn(2, chosen, job)
    assert steps[0] == steps[1] == [1, 2, 3, 4]


def test_the_first_makes_what_the_others_find():
    group, made = Together(3), []
    threads = [threading.Thread(target=parallel.first_alone, args=(comm, lambda rank=comm.rank: made.append(rank),
                                                                   np.empty(0))) for comm in group.all]
    for thread in threads[::-1]:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == 0
    assert sorted(made) == [0, 1, 2]


def test_shares_are_all_rows_once_and_as_equal_as_can_be():
    for count in range(9):
        for size in range(1, 5):
            shares = [parallel.share(count, SimpleNamespace(rank=rank, size=size)) for rank in range(size)]
            assert [row for one in shares for row in one] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("variables", "device", "message"), [
    ({"WORLD_SIZE": "x"}, "cuda", "must be whole numbers"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "cuda", "WORLD_SIZE is 2 and RANK 2, but RANK must be"),
    ({"WORLD_SIZE": "0"}, "cuda", "WORLD_SIZE is 0 and RANK 0"),
    ({"WORLD_SIZE": "2"}, "cpu", "several processes need GPUs"),
])
def test_an_environment_that_makes_no_sense_is_refused(variables, device, message, monkeypatch, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        parallel.from_environment(tmp_path, device)


@pytest.mark.parametrize("rank", [None, "3"])
def test_without_a_launcher_nothing_is_shared(rank, monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert isinstance(parallel.from_environment(tmp_path, "cpu"), parallel.Solo)


@pytest.fixture
def nccl(monkeypatch):
    """A CuPy whose NCCL writes down what it is asked."""
    asked = []
    library = SimpleNamespace(
        available=True, NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_SUM=0, get_unique_id=lambda: (3, -1, 4),
        NcclCommunicator=lambda *given: asked.append(given) or SimpleNamespace(allReduce=lambda *a: asked.append(a)))
    used = []
    cuda = SimpleNamespace(nccl=library, Device=lambda i: SimpleNamespace(use=lambda: used.append(i)),
                           get_current_stream=lambda: SimpleNamespace(ptr=99),
                           runtime=SimpleNamespace(getDeviceCount=lambda: 2, CUDARuntimeError=RuntimeError))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    return SimpleNamespace(asked=asked, used=used, library=library)


def test_processes_meet_by_a_file_and_sum_in_place(nccl, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    (tmp_path / "nccl.29500.id").write_text("9,9,9")        # of a launch that failed
    comm = parallel.from_environment(tmp_path, "cuda")
    assert (comm.rank, comm.size, nccl.used, list(tmp_path.iterdir())) == (0, 2, [0], [])
    (tmp_path / "nccl.29500.id").write_text("3,-1,4")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    parallel.from_environment(tmp_path, "cuda")
    assert nccl.asked == [(2, (3, -1, 4), 0), (2, (3, -1, 4), 1)]
    assert nccl.used == [0, 0]
    comm.add(SimpleNamespace(data=SimpleNamespace(ptr=5), size=6, dtype=np.dtype("float64")))
    assert nccl.asked[-1] == (5, 5, 6, 8, 0, 99)


def test_a_process_that_waits_in_vain_for_the_first_says_so(nccl, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(parallel, "PATIENCE", 0.01)
    with pytest.raises(UserError, match=r"process 1 waited 0\.01 seconds for .* give all processes the same out_dir"):
        parallel.from_environment(tmp_path, "cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="LOCAL_RANK is 2, but there are 2 GPUs here"):
        parallel.from_environment(tmp_path, "cuda")
    nccl.library.available = False
    with pytest.raises(UserError, match=r"CuPy finds no NCCL.*pip install nvidia-nccl-cu13"):
        parallel.from_environment(tmp_path, "cuda")
