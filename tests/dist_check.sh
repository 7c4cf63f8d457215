#!/usr/bin/env bash
# Does pyllama install?  From the tree, editable, from an sdist's wheel, and without a compiler; each from a clean copy
# of the tree into an environment that does not have it, and each followed by a forward and backward pass.
# The first way fetches what pyproject.toml says it needs to run and to build; the others, to be quick, find it there.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python="$scratch/venv/bin/python"
${PYTHON:-python3} -m venv "$scratch/venv"

here=(--no-build-isolation --no-deps)
pip() { "$python" -m pip --disable-pip-version-check "$@" --quiet; }

fresh_copy() {
    rm -rf "$scratch/tree" && mkdir "$scratch/tree"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory="$scratch/tree"
}

passes_on() {   # passes_on BACKEND: and then it is taken out again
    (cd "$scratch" && "$python" - "$1") <<'PY'
import pathlib
import sys
import numpy as np
import pyllama
from pyllama import backend
from pyllama.ops import rms_norm

x, w = np.arange(12, dtype="float32").reshape(3, 4), np.ones(4, "float32")
y, back = rms_norm(x, w, eps=1e-5)
dx, dw = back(y)
assert np.allclose((y**2).mean(-1), 1, rtol=1e-5) and np.abs(dx).max() < 1e-5 and np.allclose(dw, (y**2).sum(0))
assert (backend.cpu is None) == (sys.argv[1] == "numpy"), backend.why_no_cpu
texts = pathlib.Path(pyllama.__file__).parent
assert (texts / "cuda/csrc/rms_norm.cu").exists() or (texts.parent / "csrc/cuda/rms_norm.cu").exists()
print("   ", *backend.available(), backend.cpu.isa if backend.cpu else backend.why_no_cpu)
PY
    pip uninstall --yes pyllama
}

echo "pip install ."
fresh_copy
pip install "$scratch/tree"
passes_on cpu
pip install build $("$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')

echo "pip install --editable ."
fresh_copy
pip install "${here[@]}" --editable "$scratch/tree"
passes_on cpu

echo "sdist, wheel, pip install"
fresh_copy
"$python" -m build --no-isolation --outdir "$scratch/dist" "$scratch/tree" > "$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
pip install "${here[@]}" "$scratch"/dist/*.whl
passes_on cpu

echo "pip install . without a compiler"
fresh_copy
CC=/bin/false pip install "${here[@]}" "$scratch/tree"
passes_on numpy
