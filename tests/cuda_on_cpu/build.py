"""Compile the text of kernels to a library that Python loads; a cache keeps it.

(a) The text is compiled within an unnamed namespace: gcc refuses to put the __shared__ arrays of inline functions,
    which other files could share, into one section with those of kernels.
(b) A library is made in a folder of its own, under a lock, and then renamed: processes that want the same one wait for
    the first, and none loads half of it.
(c) The runtime is an object of its own, made once.  Its symbols and the sanitizers' hooks stay hidden in each library:
    many can be loaded at once, beside a true sanitizer, too.
(d) The checked build lets gcc's sanitizers find the accesses; what they call is checker.cpp, not their own runtimes.
"""
import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cuda_on_cpu import memory
from tests.cuda_on_cpu.errors import KernelError

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "cuda_on_cpu"

COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE",
          "-g1", "-gdwarf-4"]                               # lines only; version 5 misnames the file of a #line
KERNEL = ["-O1",                                            # -O2 takes as long to compile as it saves
          "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function",
          "-Wframe-larger-than=32768",                      # a fiber's stack has 64 KiB
          "-ffp-contract=off",                              # the same bits on every processor
          "-fno-strict-aliasing",                           # a float * may be read as a float4 *
          "-fno-math-errno",
          "-include", str(HERE / "cuda.h")]
LINKED = ["-nodefaultlibs", "-lstdc++", "-lm", "-lc", "-lgcc"]      # with g++'s own list it takes three times as long
CHECKED = ["-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
           "-fno-tree-ccp", "-fno-tree-fre"]                # they take an uninitialized variable for what it should be
PATTERN = "-ftrivial-auto-var-init=pattern"                 # fills what the warnings miss with -1.7e38, since GCC 12

missing = [tool for tool in ("g++", "nm", "addr2line") if not shutil.which(tool)]          # what the executor needs


def library(code, options=(), checked=False):
    """The path of the library with the kernels of `code`, and their names; KernelError with the compiler's message."""
    kernels = find_kernels(code)
    text = "\n".join(['#line 1 "kernels.cu"', "namespace {", '#line 1 "kernels.cu"', code, "}",
                      *(f"CUDA_ON_CPU_ENTRY({name}, {bounds})" for name, bounds in kernels.items())])
    flags = [*COMMON, *KERNEL, *(checked_flags() if checked else []), *map(understood, options)]
    objects = runtime(checked)

    def make(path):
        source, compiled = path.with_suffix(".cu"), path.with_suffix(".o")
        source.write_text(text)
        run("g++", *flags, "-x", "c++", "-c", source, "-o", compiled)
        run("g++", "-shared", compiled, *objects, *LINKED, "-o", path)

    return cached(".so", make, text, flags, LINKED, HERE.joinpath("cuda.h").read_text(), objects), list(kernels)


def find_kernels(code):
    """{name: what stands in its __launch_bounds__, or nothing} of every extern "C" kernel in the text."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", code, flags=re.DOTALL)
    bounds = r"(?:__launch_bounds__\s*\(((?:[^()]|\([^()]*\))*)\)\s*)?"
    found = re.findall(rf'extern\s+"C"\s+__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(', code)
    return {name: before or after for before, after, name in found}


def understood(option):
    """The option of g++ for one of NVRTC's; ValueError if there is none."""
    if re.match(r"--?std=c\+\+\d\d$|-D\w", option):
        return option.replace("--std", "-std")
    raise ValueError(f"the executor understands -std=c++NN and -DNAME=VALUE, not {option}")


@functools.cache
def checked_flags():
    try:
        run("g++", PATTERN, "-E", "-x", "c++", os.devnull)
    except KernelError:
        return CHECKED
    return [*CHECKED, PATTERN]


@functools.cache
def runtime(checked):
    """The paths of the objects that every library contains."""
    flags = [*COMMON, "-O2", "-Wall", "-Wextra", "-Werror", *(["-DCHECKED"] if checked else []),
             f"-DGUARD={memory.GUARD}", f"-DMAX_SHARED={memory.MAX_SHARED}"]
    headers = [path.read_text() for path in sorted(HERE.glob("*.h"))]

    def made(source):
        def make(path):
            run("g++", *flags, "-c", source, "-o", path)
        return cached(".o", make, source.read_text(), flags, headers)

    return [made(HERE / name) for name in ("runtime.cpp", *(["checker.cpp"] if checked else []))]


def cached(suffix, make, *parts):
    """The file that make(path) makes of these parts, made now if there is none yet."""
    digest = hashlib.sha256(repr((compiler(), parts)).encode()).hexdigest()[:20]
    path = CACHE / (digest + suffix)
    if not path.exists():
        with locked(path.with_suffix(".lock")):
            if not path.exists():                           # nobody has made it while we waited
                with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                    half_done = Path(folder, path.name)
                    make(half_done)
                    os.replace(half_done, path)
    return path


@contextlib.contextmanager
def locked(path):
    CACHE.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def compiler():
    return run("g++", "--version")


def run(*command):
    english = os.environ | {"LC_ALL": "C"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=english)
    if done.returncode:
        raise KernelError(done.stderr.strip())
    return done.stdout
