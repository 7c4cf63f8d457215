"""The cores and memory that this process may use, read from the system's files."""
import os

import pytest

from pyllama import machine


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """A machine described by files: pretend({"cpu.max": ...}, {cpu: its siblings})."""
    def describe(files, siblings):
        cgroups, cpus, cgroup = tmp_path / "cgroup", tmp_path / "cpus", tmp_path / "mine"
        cgroup.write_text("1:name=systemd:/other\n0::/outer/inner\n")
        for name, text in files.items():
            (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
            (cgroups / name).write_text(text)
        for n, others in siblings.items():
            (cpus / f"cpu{n}/topology").mkdir(parents=True)
            (cpus / f"cpu{n}/topology/thread_siblings_list").write_text(others)
        monkeypatch.setattr(machine, "CGROUPS", cgroups)
        monkeypatch.setattr(machine, "CGROUP", cgroup)
        monkeypatch.setattr(machine, "CPUS", cpus)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(siblings), raising=False)
    return describe


FOUR = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2", 3: "3"}      # two cores of two threads, two of one


def test_cores_are_physical_and_within_the_affinity(pretend):
    pretend({}, FOUR)
    assert machine.cores() == 4


@pytest.mark.parametrize(("files", "cores"), [
    ({"cpu.max": "max 100000"}, 4),
    ({"cpu.max": "300000 100000"}, 3),
    ({"cpu.max": "250000 100000"}, 2),
    ({"cpu.max": "50000 100000"}, 1),
    ({"outer/cpu.max": "200000 100000", "outer/inner/cpu.max": "max 100000"}, 2),
    ({"other/cpu.max": "100000 100000"}, 4)])
def test_cores_keep_within_the_containers_quota(pretend, files, cores):
    pretend(files, FOUR)
    assert machine.cores() == cores


def test_memory_keeps_within_the_containers_limit(pretend):
    pretend({"outer/memory.max": "1048576", "memory.max": "max"}, FOUR)
    assert machine.memory() == 2**20


def test_memory_is_the_machines_without_a_limit(pretend):
    pretend({}, FOUR)
    assert 2**28 < machine.memory() < 2**48
