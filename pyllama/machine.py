"""The cores and the memory that this process may use: its CPU affinity and its container's limits count."""
import contextlib
import functools
import os
import threading
from pathlib import Path

CPUS, CGROUPS, CGROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores():
    """The number of physical cores this process may use, at least 1.

    Hardware threads are not counted: two of one core share its vector units.
    """
    if not hasattr(os, "sched_getaffinity"):                # macOS
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = {read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    quotas = [int(quota) // int(period) for quota, period in map(str.split, limits("cpu.max")) if quota != "max"]
    return max(1, min([len(siblings), *quotas]))


def memory():
    """The memory this process may use, in bytes: the machine's, or less in a container."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in limits("memory.max") if limit != "max")])


def limits(name):
    """The contents of the file `name` in this process's control group (version 2) and in each parent group."""
    group_of_process = CGROUPS / read(CGROUP).rpartition("0::/")[2].split("\n")[0]
    groups = [group for group in (group_of_process, *group_of_process.parents) if group.is_relative_to(CGROUPS)]
    return [text for group in groups if (text := read(group / name))]


def read(path):
    """The file's text, or "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


_lock, _inside, _limiter = threading.Lock(), 0, None        # of one_blas_thread()


@functools.cache
def _blas():
    """A controller of the BLAS libraries that are loaded, NumPy's among them."""
    from threadpoolctl import ThreadpoolController  # here, because most of pyllama runs without it
    return ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def one_blas_thread():
    """Run NumPy's matrix products on one thread within this context; restore the number of threads afterwards.

    Training already splits a batch over the cores.  A BLAS's own threads would spin against these, which is several
    times slower if another process needs a core too.  The number of threads belongs to the process: meanwhile NumPy
    uses one thread in the process's other threads, too.  The first to enter sets it, the last to leave restores it.
    The cost is 10 µs a call.
    """
    global _inside, _limiter
    with _lock:
        _inside += 1
        if _inside == 1:
            _limiter = _blas().limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limiter.restore_original_limits()
