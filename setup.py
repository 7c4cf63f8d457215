"""The compiled part: csrc/cpu/table.c once per precision and instruction set, linked under one Cython module.

Instruction sets that this compiler or processor does not support are left out; without a compiler, NumPy does
everything.  A build writes nothing into the source tree, except the module of an editable install.
"""
import re
import subprocess
import sys
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError
from setuptools.modified import newer_group

# Value-safe flags only: -ffast-math would break exp (csrc/cpu/real.h) and NaN.  `omp simd reduction` says, loop by
# loop, where a sum may be reassociated; -fno-trapping-math lets comparisons vectorize; with -fwrapv, which Python adds,
# Clang vectorizes no `parallel for simd`.
SAFE = ["-O3", "-std=gnu11", "-fno-trapping-math", "-fno-math-errno", "-fno-wrapv"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
VNNI = [*AVX512, "-mavx512vnni"]
BF16 = [*VNNI, "-mavx512bf16"]
ISA = {                      # name: (does the processor run it? the compiler's flags; the precisions that gain by it)
    "baseline": ("1", [], (16, 32, 64)),
    "avx2": ('__builtin_cpu_supports("avx2")', ["-mavx2", "-mfma", "-mf16c"], (16, 32, 64)),
    "avx512": ('__builtin_cpu_supports("avx512f")', AVX512, (16, 32, 64)),
    "avx512vnni": ('__builtin_cpu_supports("avx512vnni")', VNNI, (32,)),
    "avx512bf16": ('({ __asm__("vdpbf16ps %zmm2, %zmm1, %zmm0"); 1; })', BF16, (16,))}
if sys.platform == "linux":                             # where a process can ask for tiles: see csrc/cpu/dispatch.c
    ISA["amx"] = ('({ __asm__("tdpbssd %tmm2, %tmm1, %tmm0"); 1; })',   # an old assembler lacks it
                  [*BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16"], (16, 32))
ORIGIN = ["-Wl,-rpath,$ORIGIN"] if sys.platform == "linux" else []      # where a wheel has OpenMP's library


class Build(build):
    """In a folder of its own: what is left of another build, such as a module since moved, is not installed."""

    def initialize_options(self):
        super().initialize_options()
        self.folder = TemporaryDirectory()              # removed with this command
        self.build_base = self.folder.name


class BuildKernels(build_ext):
    def initialize_options(self):
        super().initialize_options()
        self.cython_c_in_temp = True

    def build_extension(self, ext):
        try:
            self.add_kernels(ext)
            super().build_extension(ext)
        except CCompilerError:
            self.warn("the compiler failed (see above), so the NumPy reference will run everything")
        else:
            if sys.platform == "linux" and not self.editable_mode:
                self.add_openmp(self.get_ext_fullpath(ext.name))

    def add_openmp(self, module):
        """The compiler's OpenMP library goes into a wheel: a machine without a compiler may lack it."""
        needed = subprocess.run(["ldd", module], capture_output=True, text=True, check=False).stdout
        for name, path in re.findall(r"(lib[gi]?omp\S*) => (/\S+)", needed):
            self.copy_file(path, str(Path(module).with_name(name)))

    def copy_extensions_to_source(self):
        """For an editable install.  Where the compiler failed, the module in this tree stays: another environment may
        use it.  One that is older than its sources may disagree with them."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            module = Path(self.get_ext_filename(self.get_ext_fullname(ext.name)))
            if module.exists() and newer_group(ext.depends, str(module)):
                self.warn(f"{module} is older than its sources; delete it if no other environment uses it")

    def add_kernels(self, ext):
        openmp = [flag for flag in ("-fopenmp", "-fopenmp-simd") if self.builds("0", [flag])][:1]
        ext.extra_link_args = [*openmp, *ORIGIN]
        widest = {}                                         # precision: the widest instruction set built so far
        for isa, (runs, flags, precisions) in ISA.items():
            if isa == "baseline" or self.builds(runs, openmp + flags):
                for real in precisions:
                    ext.extra_objects += self.compiler.compile(
                        ["csrc/cpu/table.c"], f"{self.build_temp}/{isa}{real}", [("REAL", str(real)), ("ISA", isa)],
                        extra_postargs=SAFE + openmp + flags)
                    widest[real] = isa
                ext.define_macros.append((f"HAVE_{isa}", "1"))
                ext.define_macros += [(f"OBJECT_{real}_{isa}", other) for real, other in widest.items()]

    def builds(self, expression, flags):
        """Does a program of a parallel region and this expression compile and link?"""
        with TemporaryDirectory() as folder:
            program = Path(folder, "program.c")
            program.write_text("volatile int n;\nint main(void) {\n#pragma omp parallel\nn++;\n"
                               f"return {expression};\n}}")
            try:
                objects = self.compiler.compile([str(program)], folder, extra_postargs=flags)
                self.compiler.link_executable(objects, "program", folder, extra_postargs=flags)
            except CCompilerError:
                return False
            return True


class BuildTexts(build_py):
    """The text of the CUDA kernels goes with the package: CuPy compiles it where a GPU is."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for path in glob("csrc/cuda/*.cu*"):
                self.copy_file(path, self.mkpath_of(path))

    def mkpath_of(self, path):
        target = Path(self.build_lib, "pyllama/cuda/csrc", Path(path).name)
        self.mkpath(str(target.parent))
        return str(target)


ONCE = ["csrc/cpu/dispatch.c", "csrc/cpu/arena.c", "csrc/cpu/team.c"]    # whatever the precision and instruction set
cpu = Extension("pyllama.cpu", ["pyllama/cpu.pyx", *ONCE], optional=True,
                depends=["setup.py", "pyllama/cpu.pyx", *glob("csrc/*.h"), *glob("csrc/cpu/*.*")],
                include_dirs=["csrc", numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                               ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")])
setup(ext_modules=[cpu], cmdclass={"build": Build, "build_ext": BuildKernels, "build_py": BuildTexts})
