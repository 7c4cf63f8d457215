"""The commands ops, check and env: the ops, the check of their gradients, the machine."""
import difflib
import os
import platform
from importlib import metadata
from typing import Literal

import numpy as np
from rich.table import Table

import pyllama.ops  # noqa: F401 -- registers
from pyllama import __version__, backend, device, memory
from pyllama.cli.output import console
from pyllama.errors import UserError, pip_install
from pyllama.op import OPS
from pyllama.testing import WrongGradient
from pyllama.testing import check as check_op
from pyllama.testing.slopes import EXACT

# The packages that env() looks for, and what needs each of the optional ones.
PACKAGES = {
    "tokenizers": "", "matplotlib": "pyllama plot", "tensorboardX": "train --tensorboard",
    "sacrebleu": "the task translate", "rouge_score": "the task summarize",
    "networkx": "graphs as .graphml or .png", "rdflib": "graph, and graphs as .ttl", "hypothesis": "the tests"}


def ops(names: tuple[str, ...] = (), /) -> int:
    """List the ops, or print the derivation, shapes and backends of some.

    Args:
        names: ops to print (default: list all)
    """
    for op in chosen(names):
        if names:
            options = "\n            ".join(f"{name} from {values}" for name, values in op.options.items())
            print(f"{op.name}\n\n{op.__doc__}\n\nShapes      {op.shapes}\nOptions     {options or 'none'}\n"
                  f"Backends    {', '.join(op.backends())}")
        else:
            print(f"{op.name:22}{' '.join(op.backends()):11}{op.shapes}")
    return 0


def chosen(names):
    """The ops of these names; all if there are none.  Raises UserError for an unknown name."""
    unknown = [name for name in names if name not in OPS]
    if unknown:
        close = difflib.get_close_matches(unknown[0].lower(), OPS, 1)
        hint = f"did you mean {close[0]}?" if close else f"the ops are {', '.join(sorted(OPS))}"
        raise UserError(f"there is no op {unknown[0]!r}; {hint}")
    return [OPS[name] for name in names or sorted(OPS)]


def check(names: tuple[str, ...] = (), /, all: bool = False, problems: int = 50, seed: int = 0,
          on: Literal["numpy", "cpu"] | None = None) -> int:
    """Check backward passes against the exact derivative of the forward pass.

    Prints the largest error of each op and where it occurs.  The exit code is 1 if an error exceeds 1e-11, or the
    tolerance of differences if the forward pass is not holomorphic.

    Args:
        names: ops to check (default: all)
        all: check all ops
        problems: random problems for each op
        seed: seed of the problems
        on: check only this backend (default: every backend of the op)
    """
    if on and on not in backend.available():
        raise UserError(f"the backend {on!r} is not available: {backend.why_no_cpu}")
    if problems < 1:
        raise UserError(f"problems is {problems}; it must be at least 1")
    checked = chosen(() if all else names)
    if on and names and not all and (lacking := [op.name for op in checked if on not in op.backends()]):
        raise UserError(f"{lacking[0]} has no {on} kernel to check; remove --on {on}")
    if not backend.cpu:
        print(f"no C kernels: {backend.why_no_cpu}")
    worst = 0.0
    failed = False
    print(f"{'op':22}{'backend':9}{'error':9}largest for")
    for op in checked:
        for name in [on] if on in op.backends() else [] if on else op.backends():
            print(f"{op.name:22}{name:9}", end="")
            try:
                with backend.use(name):
                    finding = check_op(op, seed, problems)
            except (TypeError, ValueError, WrongGradient) as error:             # not even a gradient
                failed = True
                print(error)
                continue
            failed |= finding.wrong
            worst = max(worst, finding.error) if finding.error == finding.error else np.inf
            print(f"{finding.error:<9.1e}{described(finding)}")
    print(f"largest error {worst:.1e}, " +
          (f"at most the {EXACT:.0e} that rounding explains" if worst <= EXACT else
           f"more than the {EXACT:.0e} that rounding explains" if failed else
           "which differences explain: an exact derivative needs a holomorphic forward pass"))
    return 1 if failed else 0


def described(finding):
    """The problem of a finding, in a line."""
    options = "".join(f", {k}={v:.3g}" if isinstance(v, float) else f", {k}={v}" for k, v in finding.options.items())
    how = f"; by differences, tolerance {finding.tolerance:.1e}" if finding.method == "differences" else ""
    return f"{finding.input} of {' '.join(map(str, finding.shapes))}{options}{how}"


def env() -> int:
    """Print versions, kernels, instruction set, threads; what is missing and why."""
    table = Table(box=None, show_header=False)
    blas = np.show_config("dicts")["Build Dependencies"]["blas"]            # type: ignore[index, call-overload]
    table.add_row("pyllama", __version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    table.add_row("NumPy", f"{np.__version__} with {blas['name']} {blas['version']}")
    if backend.cpu:
        kernels = [name for name, op in OPS.items() if "cpu" in op.backends()]
        table.add_row("C kernels", f"{backend.cpu.isa}, threads {backend.cpu.threads()}: {', '.join(kernels)}; NumPy "
                                   f"runs the other ops")
        table.add_row("memory", "arena" if memory.install() else "NumPy's own, because PYLLAMA_ARENA=0")
    else:
        table.add_row("C kernels", f"none: {backend.why_no_cpu}")
    table.add_row("GPU", gpu())
    for package, purpose in PACKAGES.items():
        try:
            table.add_row(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            table.add_row(package, f"not installed; needed for {purpose}: {pip_install(package)}")
    if backend.why_no_blas:
        table.add_row("BLAS", backend.why_no_blas)
    variables = os.environ.keys() - backend.SET_HERE
    for name in sorted(name for name in variables if name.startswith(("PYLLAMA_", "OMP_", "OPENBLAS_"))):
        table.add_row(name, os.environ[name])
    console.print(table)
    return 0


def gpu() -> str:
    """A description of the GPU, or the reason why there is none."""
    try:
        cupy = device.cupy()
    except UserError as error:
        return f"none: {error}"
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return (f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2 ** 30:.0f} GiB, of "
            f"{cupy.cuda.runtime.getDeviceCount()}; CuPy {cupy.__version__}")
