"""What this process may use of the machine: cores and memory, within its affinity and its container's limits."""
import contextlib
import functools
import os
from pathlib import Path

CPUS, CGROUPS, CGROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores():
    """Physical cores this process may use, at least 1: two hardware threads of a core would share its vector units."""
    if not hasattr(os, "sched_getaffinity"):                # macOS
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = {read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    quotas = [int(quota) // int(period) for quota, period in map(str.split, limits("cpu.max")) if quota != "max"]
    return max(1, min([len(siblings), *quotas]))


def memory():
    """Bytes of memory this process may use: the machine's, or less in a container."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in limits("memory.max") if limit != "max")])


def limits(name):
    """What the file `name` says in this process's control group (version 2) and in each group around it."""
    mine = CGROUPS / read(CGROUP).rpartition("0::/")[2].split("\n")[0]
    groups = [group for group in (mine, *mine.parents) if group.is_relative_to(CGROUPS)]
    return [text for group in groups if (text := read(group / name))]


def read(path):
    """The file's text, or "" where there is none to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@functools.cache
def _blas():
    """The BLAS libraries that are loaded, NumPy's among them."""
    from threadpoolctl import ThreadpoolController  # here, because most of pyllama runs without it
    return ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def one_blas_thread():
    """Within this context NumPy's products run on one thread; afterwards on as many as before.

    Training splits a batch over the cores itself: a BLAS's own threads would spin against these, several times slower
    where another process wants a core too.  The number of threads belongs to the process: what other threads of it
    compute meanwhile with NumPy runs on one thread, too.  10 µs a call.
    """
    with _blas().limit(limits=1):
        yield
