"""RMSNorm in C, called through ctypes, and whether it is right:

    cd docs/kernels
    pyllama verify rms_norm_ctypes.py:rms_norm --backward rms_norm_ctypes.py:backward --op rms_norm

rms_norm.c is compiled with cc, or with the compiler that CC names, when this file is imported.
"""
import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from pyllama.testing.foreign import c_function

FOLDER = tempfile.mkdtemp()
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def compiled(real):
    """The library with `real` for REAL."""
    target = f"{FOLDER}/rms_norm_{real}.so"
    source = Path(__file__).with_name("rms_norm.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", f"-DREAL={real}", "-o", target, source, "-lm"], check=True)
    return ctypes.CDLL(target)


LIBRARIES = {"float64": ("double", compiled("double")), "float32": ("float", compiled("float"))}


def rms_norm(x, w, *, eps=1e-5):
    real, library = LIBRARIES[x.dtype.name]
    kernel = c_function(library.rms_norm, f"long N, long D, const {real} x[N][D], const {real} w[D], {real} y[N][D], "
                                          f"double eps", eps=eps)
    return kernel(x.reshape(-1, x.shape[-1]), w).reshape(x.shape)


def backward(dy, x, w, *, eps=1e-5):
    real, library = LIBRARIES[x.dtype.name]
    kernel = c_function(library.rms_norm_backward,
                        f"long N, long D, const {real} dy[N][D], const {real} x[N][D], const {real} w[D], "
                        f"{real} dx[N][D], {real} dw[D], double eps", eps=eps)
    dx, dw = kernel(dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]), w)
    return dx.reshape(x.shape), np.asarray(dw)
