"""The commands ops and env: the ops, the machine."""
import ast
import difflib
import inspect
import os
import platform
import sys
from importlib import metadata

import numpy as np
from rich.table import Table

import pyllama.ops  # noqa: F401 -- registers
from pyllama import __version__, backend, device, memory
from pyllama.cli.display import bfloat16
from pyllama.cli.output import console
from pyllama.errors import UserError, pip_install
from pyllama.op import OPS, Op, between
from pyllama.study import derivation

# The packages that env() looks for, and what needs each of the optional ones.
PACKAGES = {
    "tokenizers": "", "matplotlib": "pyllama plot", "tensorboardX": "train --tensorboard",
    "sacrebleu": "the task translate", "rouge_score": "the task summarize",
    "networkx": "graphs as .graphml or .png", "rdflib": "graph, and graphs as .ttl", "hypothesis": "the tests"}

INDENT = "\n" + 12 * " "                            # a line behind the title of another one, as in the ops' docstrings


def ops(names: tuple[str, ...] = (), /) -> int:
    """List the ops, or print the derivation, shapes, options, backends and code of some.

    Args:
        names: ops to print (default: list all)
    """
    for op in chosen(names):
        if names:
            print(f"{op.name}\n\n{op.__doc__}\n")
            for title, text in facts(op).items():
                print(f"{title:12}{text}")
            print(f"\n{code(op)}")
        else:
            print(f"{op.name:22}{' '.join(op.backends()):11}{op.shapes}")
    return 0


def facts(op: Op) -> dict[str, str]:
    """What an op's docstring does not say, as titles and texts."""
    parameters = inspect.signature(op).parameters
    options = [option(name, parameters.get(name), drawn) for name, drawn in op.options.items()]
    found = {"Shapes": op.shapes, "Options": INDENT.join(options) or "none", "Backends": ", ".join(op.backends()),
             "File": inspect.getfile(op.forward)}
    return found | ({"Steps": f"pyllama derive {op.name}"} if op.name in derivation.names() else {})


def option(name: str, parameter: inspect.Parameter | None, drawn: between | list) -> str:
    """eps=1e-05; tests draw it from 0.001 to 1"""
    default = f"={parameter.default!r}" if parameter else ""            # **options go on to another op
    values = f"{drawn.low:g} to {drawn.high:g}" if isinstance(drawn, between) else ", ".join(map(repr, drawn))
    return f"{name}{default}; tests draw it from {values if len(values) < 60 else 'the values below'}"


def code(op: Op) -> str:
    """The source of an op's module, behind its docstring."""
    source = inspect.getsource(sys.modules[op.module])
    docstring, *_ = ast.parse(source).body
    return "\n".join(source.splitlines()[docstring.end_lineno:])


def chosen(names):
    """The ops of these names; all if there are none.  Raises UserError for an unknown name."""
    unknown = [name for name in names if name not in OPS]
    if unknown:
        close = difflib.get_close_matches(unknown[0].lower(), OPS, 1)
        hint = f"name a function in it, {unknown[0]}:function" if unknown[0].endswith(".py") else \
            f"did you mean {close[0]}?" if close else f"the ops are {', '.join(sorted(OPS))}"
        raise UserError(f"there is no op {unknown[0]!r}; {hint}")
    return [OPS[name] for name in names or sorted(OPS)]


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
    table.add_row("bfloat16", bfloat16())
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
