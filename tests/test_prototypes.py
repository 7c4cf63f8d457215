"""The kernels' declarations in C, in the table of kernels and in Cython are the same."""
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1]
COMPILER = (sysconfig.get_config_var("CC") or "cc").split()


def prototypes(text):
    """{kernel: (what it returns, its arguments)} of a table of function pointers, in C or in Cython."""
    return {name: (returned, " ".join(arguments.split()))
            for returned, name, arguments in re.findall(r"(\w+) \(\*(\w+)\)\(([^)]*)\)", text)}


def test_cython_and_c_declare_the_same_kernels():
    """Cython writes calls from its own declarations, and takes any pointer for a `void *`."""
    in_c = prototypes(re.sub(r"\b(real|number)\b", "void", (SOURCES / "csrc/kernels.h").read_text()))
    assert len(in_c) > 30
    assert prototypes((SOURCES / "pyllama/cpu.pyx").read_text()) == in_c


@pytest.mark.skipif(not shutil.which(COMPILER[0]), reason="there is no C compiler")
@pytest.mark.parametrize(("precision", "sections"), [(16, {0, 3}), (32, {0, 1, 2}), (64, {0, 1})])
def test_the_compiler_compares_every_kernel_with_its_slot(precision, sections, tmp_path):
    """Each prototype of the table is changed in one argument: as many errors, and none where nothing is changed."""
    shutil.copytree(SOURCES / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc/kernels.h"
    parts = re.split(r"/\* of \w+.* \*/\n", header.read_text())[1:]      # of every precision, of float and double, ...
    slots = set().union(*(prototypes(parts[i]) for i in sections))

    def compiler(*flags):
        command = [*COMPILER, "-std=gnu11", "-fopenmp", *flags, f"-DREAL={precision}", "-DISA=any",
                   str(tmp_path / "csrc/cpu/table.c")]
        return subprocess.run(command, capture_output=True, text=True)

    def errors():
        version = subprocess.run([*COMPILER, "--version"], capture_output=True, text=True).stdout
        return compiler("-fsyntax-only", *["-ferror-limit=0"] * ("clang" in version)).stderr.count(" error: ")

    if precision == 16:                                                     # not every op has a kernel for it
        slots &= set(re.findall(r"\.(\w+) = ", compiler("-E").stdout))

    assert errors() == 0
    header.write_text(re.sub(r"(\(\*\w+\)\()", r"\1char more, ", header.read_text()))
    assert errors() == len(slots)
