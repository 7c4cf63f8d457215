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
    in_c = prototypes(re.sub(r"\breal\b", "void", (SOURCES / "csrc/kernels.h").read_text()))
    assert len(in_c) > 30
    assert prototypes((SOURCES / "pyllama/cpu.pyx").read_text()) == in_c


@pytest.mark.skipif(not shutil.which(COMPILER[0]), reason="there is no C compiler")
@pytest.mark.parametrize("precision", [32, 64])
def test_the_compiler_compares_every_kernel_with_its_slot(precision, tmp_path):
    """Each prototype of the table is changed in one argument: as many errors, and none where nothing is changed."""
    shutil.copytree(SOURCES / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc/kernels.h"
    slots = prototypes(header.read_text())
    casts = {name for name in slots if "float16" in name}

    def errors():
        command = [*COMPILER, "-std=gnu11", "-fopenmp", "-fsyntax-only", f"-DREAL={precision}", "-DISA=any",
                   str(tmp_path / "csrc/cpu/table.c")]
        if "clang" in subprocess.run([*COMPILER, "--version"], capture_output=True, text=True).stdout:
            command.append("-ferror-limit=0")
        return subprocess.run(command, capture_output=True, text=True).stderr.count(" error: ")

    assert errors() == 0
    header.write_text(re.sub(r"(\(\*\w+\)\()", r"\1char more, ", header.read_text()))
    assert errors() == len(slots.keys() - casts if precision == 64 else slots)
