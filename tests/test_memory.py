"""The arena behind NumPy's arrays: contents survive, zeros are zero, the cap holds in threads and after forks."""
import contextvars
import os
import platform
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend, machine, memory
from pyllama.errors import UserError
from tests.another import python
from tests.exercise import training

needs_arena = pytest.mark.skipif(backend.cpu is None, reason=backend.why_no_cpu)
MIB = 2**20


def handler(*array):
    return np._core.multiarray.get_handler_name(*array)


@pytest.fixture(autouse=True)
def no_arena():
    """A command that ran before in this process leaves its arena installed."""
    if backend.cpu:
        memory.uninstall()


@pytest.fixture
def arena():
    assert memory.install()
    yield
    memory.uninstall()


def filled(n, seed):
    """n bytes that no other seed gives."""
    return np.full(n, seed % 251 + 1, np.uint8)


# Sizes on both sides of the smallest kept block, of a class's end, and of a huge page.
sizes = st.one_of(st.integers(0, 9000), st.sampled_from([2**16, 2**16 + 1, 5 * 2**14, 2 * MIB - 1, 2 * MIB, 5 * MIB]))
actions = st.one_of(st.tuples(st.sampled_from(["make", "zeros", "drop"]), sizes), st.tuples(st.just("resize"), sizes))


@needs_arena
@pytest.mark.usefixtures("arena")
@given(steps=st.lists(actions, max_size=40))
def test_arrays_keep_their_contents_whatever_is_made_freed_and_resized(steps):
    alive = deque()                                             # (array, the value in each of its bytes)
    for seed, (action, n) in enumerate(steps):
        if action == "make" or (action in ("drop", "resize") and not alive):
            alive.append((filled(n, seed), seed % 251 + 1))
        elif action == "zeros":
            assert not np.zeros(n, np.uint8).any()
            alive.append((np.zeros(n, np.uint8), 0))
        elif action == "drop":
            alive.rotate(seed)
            alive.pop()
        else:
            alive.rotate(seed)
            a, value = alive.pop()
            kept = min(a.size, n)
            a.resize(n, refcheck=False)
            assert np.all(a[:kept] == value)
            assert not a[kept:].any()                           # NumPy's promise for what is new
            a.fill(value)
            alive.append((a, value))
        assert all(a.ctypes.data % 64 == 0 for a, _ in alive)
        assert all(np.all(a == value) for a, value in alive)


@needs_arena
@pytest.mark.usefixtures("arena")
@pytest.mark.parametrize("n", [4096, 100_000, 3 * MIB])
def test_a_freed_block_is_given_to_the_next_array_of_its_size_and_zeroed_for_zeros(n):
    dirty = filled(n, 7)
    before, place = memory.stats(), dirty.ctypes.data
    del dirty
    clean = np.zeros(n, np.uint8)
    after = memory.stats()
    assert clean.ctypes.data == place
    assert not clean.any()
    assert (after.reused, after.fresh) == (before.reused + 1, before.fresh)
    assert after.in_use == before.in_use


@needs_arena
@pytest.mark.usefixtures("arena")
@given(n=st.integers(4096, 64 * MIB))
def test_a_new_block_is_at_most_an_eighth_larger_than_asked_for(n):
    memory.release()                                            # nothing larger is free
    before = memory.stats().in_use
    a = np.empty(n, np.uint8)
    assert n <= memory.stats().in_use - before <= 9 / 8 * n
    del a
    assert memory.stats().in_use == before


@needs_arena
@pytest.mark.usefixtures("arena")
@given(lengths=st.lists(st.integers(1, 128), min_size=1, max_size=20),
       widths=st.lists(st.sampled_from([2**12, 2**15, 5 * 2**15, 2**18]), min_size=1, max_size=6))
def test_batches_of_varying_length_take_little_more_than_is_in_use(lengths, widths):
    """Rounding adds an eighth at most; what is free, or larger than asked for, an eighth of the peak or 32 MiB."""
    memory.release()
    others, alive, peak = memory.stats().in_use, [], 0

    def make(n):
        nonlocal peak
        alive.append(np.empty(n, np.int8))
        peak = max(peak, sum(a.nbytes for a in alive))          # NumPy's own memory would take as much
        held, in_use, *_ = memory.stats()
        rounded = 9 / 8 * peak + others
        assert held + in_use <= rounded + max(rounded / 8, 32 * MIB)

    for length in lengths:
        for width in widths:                                    # forward: what is computed on the way, what is kept
            make(8 * length * width)
            make(4 * length * width)
            del alive[-2]
        for width in reversed(widths):                          # backward
            make(16 * length * width)
            del alive[-2:]
    assert not alive


@needs_arena
@pytest.mark.usefixtures("arena")
def test_a_fixed_shape_needs_no_new_blocks_after_its_first_steps_whatever_came_before():
    for length in (40, 64, 24):
        _, records = training(steps=10, hidden=64, windows=8, length=length)
        fresh = [memory.stats().fresh for _ in records]
        assert fresh[2:] == [fresh[2]] * 8, length


@needs_arena
def test_the_cap_is_never_exceeded(monkeypatch):
    monkeypatch.setenv("PYLLAMA_ARENA_CAP", "8")
    memory.install()
    try:
        for n in [MIB // 2, MIB, 3 * MIB, 9 * MIB, MIB]:
            arrays = [filled(n, i) for i in range(20)]
            while arrays:
                arrays.pop()
                assert memory.stats().held <= 8 * MIB
        assert memory.stats().held >= MIB                       # it does keep the last
        monkeypatch.setenv("PYLLAMA_ARENA_CAP", "0")
        memory.install()
        assert memory.stats().held == 0
        del arrays
        np.ones(MIB)
        assert memory.stats().held == 0
    finally:
        memory.uninstall()


@needs_arena
@pytest.mark.usefixtures("arena")
def test_release_gives_back_what_is_free_and_leaves_the_arrays():
    kept, freed = filled(MIB, 1), filled(3 * MIB, 2)
    del freed
    assert memory.stats().held >= 3 * MIB
    memory.release()
    assert memory.stats().held == 0
    assert np.all(kept == filled(MIB, 1))


@needs_arena
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_release_gives_back_what_malloc_keeps_between_blocks_that_stay():
    """As after a model is made and rounded: 40 MiB in blocks that malloc does not map, every tenth of which stays."""
    made = [filled(100 * 1024, i % 7) for i in range(400)]
    kept = made[::10]
    del made
    before = resident()
    memory.release()
    assert resident() < before - 30 * MIB
    assert all(np.all(kept[i] == filled(100 * 1024, 10 * i % 7)) for i in range(40))


def resident():
    """The bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_arena
def test_uninstall_gives_the_memory_back_and_leaves_the_arrays():
    assert handler() == "default_allocator"
    assert memory.install()
    assert memory.install()                                     # twice is once
    assert handler() == "pyllama arena"
    kept, dropped = filled(MIB, 1), filled(MIB, 2)
    del dropped
    assert memory.stats().held >= MIB
    memory.uninstall()
    assert (handler(), handler(kept)) == ("default_allocator", "pyllama arena")
    assert memory.stats().held == 0
    assert np.all(kept == 2)
    del kept
    memory.uninstall()                                          # of what is not installed: nothing
    assert handler() == "default_allocator"


@needs_arena
@pytest.mark.usefixtures("arena")
def test_another_thread_has_its_own_handler_unless_it_gets_the_context():
    seen = []
    context = contextvars.copy_context()
    for run in (lambda: seen.append(handler()), lambda: context.run(lambda: seen.append(handler()))):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert seen == ["default_allocator", "pyllama arena"]


@needs_arena
def test_threads_that_pass_arrays_to_each_other_find_them_whole():
    passed, wrong = deque(maxlen=50), []

    def churn(seed):
        memory.install()
        rng = np.random.default_rng(seed)
        for n in rng.integers(1, 3 * 2**13, 3000):
            value = int(rng.integers(1, 256))
            passed.append((np.full(n, value, np.uint8), value))
            try:
                a, value = passed.popleft()
            except IndexError:
                continue
            if not np.all(a == value) or np.zeros(n, np.uint8).any():
                wrong.append(n)

    before = memory.stats().in_use
    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed.clear()
    assert not wrong
    assert memory.stats().in_use == before                      # no count is lost


FORKS = """
import os, threading
import numpy as np
from pyllama import memory
stop = threading.Event()
def churn():
    memory.install()
    while not stop.is_set():
        np.full(100_000, 3, np.uint8)
threading.Thread(target=churn).start()          # so that some of the forks find the arena at work
memory.install()
mine = np.full(100_000, 5, np.uint8)
codes = set()
for _ in range(20):
    child = os.fork()
    if not child:
        a = np.full(100_000, 9, np.uint8)
        os._exit(0 if np.all(mine == 5) and np.all(a == 9) and not np.zeros(100_000).any() else 1)
    codes.add(os.waitpid(child, 0)[1])
stop.set()
assert codes == {0}, codes
"""


@needs_arena
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_goes_on_with_the_arena():
    subprocess.run([sys.executable, "-c", FORKS], timeout=60, check=True)


LAZY = """
import numpy as np
from pyllama import memory
memory.install()
before = memory.peak_rss()
a = np.zeros(2**29, np.uint8)                   # a cache made for the longest text, say
a[:1000] = 1
assert memory.peak_rss() - before < 2**26, memory.peak_rss() - before
"""


@needs_arena
def test_fresh_zeros_take_no_memory_until_written():
    subprocess.run([sys.executable, "-c", LAZY], timeout=60, check=True)


TRAINS = """
import os
from pathlib import Path
from pyllama import memory
from tests.exercise import training
memory.install()
_, records = training(steps=5000, hidden=8, windows=1, length=4)
seen = {}
for record in records:
    if record.step in (1000, 5000):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen[record.step] = pages * os.sysconf("SC_PAGE_SIZE"), memory.stats()
(before, early), (after, late) = seen.values()
assert (late.in_use, late.held, late.fresh) == (early.in_use, early.held, early.fresh), seen
assert after - before < 4000 * 32, seen         # the least that one object left behind in each step would take
"""


@needs_arena
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="this system reports resident memory elsewhere")
def test_five_thousand_steps_leave_nothing_resident():
    run = python("-c", TRAINS, timeout=300, OPENBLAS_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr


@needs_arena
@pytest.mark.usefixtures("arena")
def test_what_cannot_be_had_is_a_memory_error():
    with pytest.raises(MemoryError):
        np.empty(2**61, np.uint8)
    with pytest.raises(MemoryError):
        np.zeros((2**30, 2**31), np.uint8)


def test_the_arena_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PYLLAMA_ARENA", "0")
    assert not memory.install()
    assert handler() == "default_allocator"


def test_without_the_compiled_module_there_is_no_arena(monkeypatch):
    monkeypatch.setattr(backend, "cpu", None)
    assert not memory.install()
    memory.uninstall()
    assert memory.stats() == (0, 0, 0, 0)


@needs_arena
@pytest.mark.parametrize("wrong", ["much", "-1", "1.5"])
def test_a_wrong_cap_is_a_user_error(monkeypatch, wrong):
    monkeypatch.setenv("PYLLAMA_ARENA_CAP", wrong)
    with pytest.raises(UserError, match=f"PYLLAMA_ARENA_CAP.*'{wrong}'"):
        memory.install()
    assert handler() == "default_allocator"


def test_peak_rss_is_in_bytes():
    a = np.ones(64 * MIB, np.uint8)
    assert a.nbytes < memory.peak_rss() < machine.memory()
