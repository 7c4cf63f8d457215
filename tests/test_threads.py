"""Every kernel on several threads: the same bits, beside other Python threads, in forks, on one processor."""
import os
import sys

import pytest
from hypothesis import settings

from pyllama import backend
from tests.another import python
from tests.exercise import COMPILED, bits, large_problem, training

cpu = backend.cpu
pytestmark = pytest.mark.skipif(cpu is None, reason=backend.why_no_cpu)
each_compiled = pytest.mark.parametrize("op", COMPILED, ids=lambda op: op.name)


@pytest.fixture
def on_threads():
    """on_threads(n, f): f() with n threads for each kernel."""
    before = cpu.threads()

    def run(n, f):
        cpu.set_threads(n)
        return f()

    yield run
    cpu.set_threads(before)


@each_compiled
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_any_number_of_threads_gives_the_same_bits(op, dtype, on_threads):
    for seed in range(2 if settings.default is settings.get_profile("few") else 6):         # the cuts are of any table
        call = large_problem(op, seed, dtype)
        shapes = [None if x is None else x.shape for x in call.inputs]
        alone = on_threads(1, lambda call=call: bits(op, *call))
        for n in (2, 3, 7):
            assert on_threads(n, lambda call=call: bits(op, *call)) == alone, (n, shapes)


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_any_number_of_threads_trains_the_same_model(on_threads, shards):
    def trained():
        state, records = training(steps=3, hidden=64, windows=9, shards=shards)
        return [record.loss for record in records], state.flat.tobytes()

    alone = on_threads(1, trained)
    for n in (2, 7):
        assert on_threads(n, trained) == alone


WAKE = """
import os
from pyllama import cpu
from tests.exercise import COMPILED, bits, large_problem
for n, op in enumerate(COMPILED, 2):
    cpu.set_threads(n)                          # one more than were ever awake
    for seed in range(30):                      # one may ask for chunks too small for threads
        bits(op, *large_problem(op, seed))
        if len(os.listdir("/proc/self/task")) == n:
            break
    else:
        raise AssertionError(op.name)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="a process's threads are listed elsewhere")
def test_the_large_problems_do_use_several_threads():
    """Otherwise the tests above prove nothing."""
    run = python("-c", WAKE, OPENBLAS_NUM_THREADS="1", PYLLAMA_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr


STORM = """
import os, signal, threading, time
from pyllama import cpu
from tests.exercise import COMPILED, bits, large_problem

signal.alarm(90)                                # a hang ends here
cpu.set_threads(2)
calls = [(op, *large_problem(op, seed)) for op in COMPILED for seed in range(2)]
wanted = [bits(*call) for call in calls]
over, wrong = threading.Event(), []

def check():
    wrong.extend(call[0].name for call, bytes in zip(calls, wanted) if bits(*call) != bytes)

def go_on():
    check()
    while not over.is_set():
        check()

def change_the_number():                        # as a training loop does, while others compute
    while not over.is_set():
        for n in (1, 3, 2):
            cpu.set_threads(n)
            time.sleep(1e-4)

threads = [threading.Thread(target=run) for run in (go_on, go_on, change_the_number)]
for thread in threads:
    thread.start()
for _ in range(10):
    child = os.fork()
    if not child:
        signal.alarm(60)
        check()
        os._exit(1 if wrong else 0)
    wrong += [f"child {status}" for _, status in [os.waitpid(child, 0)] if status]
    check()
over.set()
for thread in threads:
    thread.join()
assert not wrong, set(wrong)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_kernels_in_two_threads_of_python_and_in_forks_meanwhile():
    run = python("-c", STORM)
    assert run.returncode == 0, run.stderr


ONE_PROCESSOR = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pyllama import cpu
from tests.exercise import COMPILED, bits, large_problem
print(cpu.threads())
calls = [(op, *large_problem(op, 0)) for op in COMPILED]
alone = [bits(*call) for call in calls]
cpu.set_threads(2)
assert [bits(*call) for call in calls] == alone
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no affinity here")
def test_one_processor_means_one_thread_and_carries_two():
    run = python("-c", ONE_PROCESSOR, PYLLAMA_NUM_THREADS="")
    assert (run.returncode, run.stdout) == (0, "1\n"), run.stderr
