#!/usr/bin/env bash
# Does pyllama install?  By every Python from 3.11 up that is on the PATH or pyenv's, or by those named:
#
#     bash tests/dist_check.sh [PYTHON ...]
#
# From the tree; editable, while other environments build in the same tree; as a wheel, on a machine without a compiler;
# and built without a compiler.  Each from a clean copy of the tree into an environment that does not have it, and each
# followed by a forward and backward pass.  The first way fetches what pyproject.toml says it needs to run and to build;
# the others, to be quick, find it there.
set -euo pipefail
cd "$(dirname "$0")/.."

NEWEST=15                                                   # of the Pythons that are looked for

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tree=$scratch/tree module=$scratch/module empty=$scratch/empty
mkdir "$empty"
echo "the quick brown fox jumps over the lazy dog" > "$scratch/text.txt"

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null; }

find_pythons() {                    # sets pythons, one of each version, and missing
    pythons=() missing=()
    local minor path found
    for minor in $(seq 11 $NEWEST); do
        found=
        for path in "$(command -v "python3.$minor" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"3.$minor".*/bin/python; do
            if [ -z "$found" ] && [ -x "$path" ] && [ "$(version_of "$path")" = "3.$minor" ]; then
                found=$path         # pyenv's shims are there for versions that do not run, too
            fi
        done
        if [ "$found" ]; then pythons+=("$found"); else missing+=("3.$minor"); fi
    done
}

here=(--no-build-isolation --no-deps)
pip() { "$python" -m pip --disable-pip-version-check "$@" --quiet; }
without_compiler() { env -u CC PATH="$empty" "$python" "$@"; }
fail() { echo "$1" >&2; exit 1; }

fresh_copy() {
    rm -rf "$tree" && mkdir "$tree"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory="$tree"
}

files() { (cd "$tree" && find . -type f -not -path "./*.egg-info/*" | sort); }

runs_on() {                         # runs_on BACKEND [FOLDER]: of what is in FOLDER, or installed
    (cd "$scratch" && PATH=$empty PYTHONPATH=${2:-} "$python" - "$1") <<'PY'
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
folder = pathlib.Path(pyllama.__file__).parent
assert (folder / "cuda/csrc/rms_norm.cu").exists() or (folder.parent / "csrc/cuda/rms_norm.cu").exists()
assert (folder / "py.typed").exists()
assert (folder / "testing/catalogue/rms_norm.toml").exists()
print("   ", *backend.available(), backend.cpu.isa if backend.cpu else backend.why_no_cpu)
PY
}

remove() { pip uninstall --yes pyllama-reference; }

check() {                           # check PYTHON
    rm -rf "$scratch/venv"
    "$1" -m venv "$scratch/venv"
    python=$scratch/venv/bin/python
    echo "Python $(version_of "$python"), $1"

    echo "  pip install ."
    fresh_copy
    files > "$scratch/before"
    pip install "$tree"
    runs_on cpu
    files | diff "$scratch/before" - || fail "the build left files in the tree"
    remove
    pip install build $("$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')

    echo "  pip install --editable ."
    fresh_copy
    pip install "${here[@]}" --editable "$tree"
    runs_on cpu

    echo "  pip install . in the same tree, into another environment, by a compiler that fails: the module stays"
    cp "$tree"/pyllama/cpu.*.so "$module"
    rm -rf "$scratch/other"
    CC=/bin/false pip install "${here[@]}" --target "$scratch/other" "$tree"
    runs_on numpy "$scratch/other"
    cmp "$tree"/pyllama/cpu.*.so "$module"
    runs_on cpu

    echo "  pip install --editable . in the same tree by a compiler that fails: the module stays"
    CC=/bin/false pip install "${here[@]}" --editable "$tree"
    cmp "$tree"/pyllama/cpu.*.so "$module"
    runs_on cpu

    echo "  also when its sources are newer: another environment may use it"
    touch "$tree/csrc/kernels.h"
    CC=/bin/false pip install "${here[@]}" --editable "$tree"
    cmp "$tree"/pyllama/cpu.*.so "$module"
    runs_on cpu
    remove

    echo "  sdist, pip wheel, and pip install without a compiler"
    fresh_copy
    rm -rf "$scratch/dist"
    "$python" -m build --no-isolation --sdist --outdir "$scratch/dist" "$tree" > "$scratch/log" 2>&1 || fail "$(cat "$scratch/log")"
    pip wheel "${here[@]}" --wheel-dir "$scratch/dist" "$scratch"/dist/*.tar.gz
    without_compiler -m pip install --quiet --no-deps "$scratch"/dist/*.whl
    runs_on cpu
    remove

    echo "  pip wheel without a compiler"
    fresh_copy
    rm -rf "$scratch/dist"
    without_compiler -m pip wheel --quiet "${here[@]}" --wheel-dir "$scratch/dist" "$tree"
    without_compiler -m pip install --quiet --no-deps "$scratch"/dist/*.whl
    runs_on numpy
    cd "$scratch"
    without_compiler -m pyllama env | grep -q "C kernels *none: the C kernels are not built" || fail "env does not say so"
    rm -rf "$scratch/run"
    without_compiler -m pyllama train --data text.txt --out_dir run --n_layer 1 --n_head 1 --n_embd 8 --block_size 4 \
        --batch_size 1 --max_iters 1 --warmup_iters 0 > "$scratch/log"
    head -n 1 "$scratch/log" | grep -q "^no C kernels: the C kernels are not built" || fail "$(cat "$scratch/log")"
    cd - > /dev/null
    remove
}

if [ $# -gt 0 ]; then pythons=("$@") missing=(); else find_pythons; fi
for each in "${pythons[@]}"; do check "$each"; done
echo "checked: ${pythons[*]}"
[ ${#missing[@]} -eq 0 ] || echo "not found, so not checked: Python ${missing[*]}"
