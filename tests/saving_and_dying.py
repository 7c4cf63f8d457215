"""Kill a process while it saves checkpoints and see what is left; test_checkpoint_safety.py runs this as a script.

    saving_and_dying.py at_random RUN KILLS SEED        SIGKILL after a random time, many times, in one long run
    saving_and_dying.py everywhere RUN                  SIGKILL before each operation of a save on the file system

Every victim is forked, which saves the half second that an interpreter takes to start.
"""
import itertools
import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

from pyllama.training import checkpoint
from tests.checkpoints import save, step_of


def check(run, at_least, at_most=sys.maxsize):
    """What `latest` and `best` name is there, and all that is there is whole; the step of the latest."""
    assert all(map(checkpoint.is_whole, checkpoint.in_order(run / "checkpoints")))
    found = checkpoint.load(run)
    assert not found.notes, found.notes
    assert found.folder.name == (run / "latest").read_text().strip()
    assert at_least <= step_of(found) <= at_most
    step_of(checkpoint.load(checkpoint.best(run)))
    return found.step


def fork(victim):
    """The process id of a child that runs victim() and then exits."""
    child = os.fork()
    if child:
        return child
    victim()
    os._exit(0)


def at_random(run, kills, seed):
    def save_for_ever():
        for i in itertools.count(step + 1):
            save(run, i, keep=2, best=i % 3 == 0)
            if i % 4 == 0:                              # the same step once more, with other contents
                save(run, i, keep=2, resumed=time.time_ns())

    moments = random.Random(int(seed))
    start = time.perf_counter()
    save(run, 0, best=True)
    one_save = time.perf_counter() - start
    step = 0
    for _ in range(int(kills)):
        child = fork(save_for_ever)
        time.sleep(moments.uniform(0, 4 * one_save))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        step = check(run, at_least=step)
    print("killed", kills, "times, at step", step)


def everywhere(run):
    def die_before(event, victim):
        events = itertools.count()
        sys.addaudithook(lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(events) == event else None)
        victim()

    for i in range(4):
        save(run, i, keep=2, best=i == 1)
    work, killed = run.with_name("work"), 0
    for step, options in (4, {"best": True}), (3, {}), (3, {"resumed": 1}), (3, {"resumed": 1, "best": True}):
        for event in itertools.count():
            shutil.copytree(run, work)
            child = fork(partial(die_before, event, partial(save, work, step, keep=2, **options)))
            _, status = os.waitpid(child, 0)
            check(work, at_least=3, at_most=step)
            save(work, 5, keep=2)                               # and the next save clears up
            check(work, at_least=5)
            assert not list((work / "checkpoints").glob(".*"))
            shutil.rmtree(work)
            if not os.WIFSIGNALED(status):
                assert status == 0
                break
            killed += 1
    print("killed", killed, "times")


if __name__ == "__main__":
    {"at_random": at_random, "everywhere": everywhere}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
