#!/usr/bin/env bash
# The tests of the kernels on another kind of processor: an emulated Python for aarch64 runs what a cross compiler made.
# Works in the present directory, where pyllama/ is compiled already; PYTHON is the Python it was compiled for.
#
# Needs Debian or Ubuntu with gcc-aarch64-linux-gnu and qemu-user.  Python and its libraries are fetched from the
# distribution's aarch64 packages and unpacked here: nothing is installed.
set -euo pipefail
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

fetch() {
    mkdir -p apt/state/lists/partial apt/cache/archives/partial packages root
    local apt=(apt-get -q=2 -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Debug::NoLocking=1
               -o Dir::State="$PWD/apt/state" -o Dir::State::status=/dev/null -o Dir::Cache="$PWD/apt/cache")
    "${apt[@]}" update
    (cd packages && "${apt[@]}" download "python$version-minimal" "libpython$version-minimal" \
        "libpython$version-stdlib" libc6 libexpat1 zlib1g libffi8 libgomp1 libgcc-s1 libstdc++6)
    for package in packages/*.deb; do dpkg-deb -x "$package" root; done
    "$PYTHON" -c 'import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["test"], sep="\n")' > needed.txt
    "$PYTHON" -m pip install --quiet --target site --only-binary=:all: --python-version "$version" --platform any \
        --platform manylinux_2_17_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
        -r needed.txt
}

[ -e site ] || fetch
for module in pyllama/cpu.cpython-*.so; do
    [ ! -e "$module" ] || mv "$module" pyllama/cpu.so                       # it carries this machine's name
done
export PYTHONPATH=$PWD:$PWD/site OPENBLAS_NUM_THREADS=1 HYPOTHESIS_PROFILE=few
python=(qemu-aarch64 -L "$PWD/root" "$PWD/root/usr/bin/python$version")
"${python[@]}" -c 'import platform; from pyllama import cpu; print(platform.machine(), cpu.isa)'
"${python[@]}" -m pytest -p no:cacheprovider -k "(cpu or kernels_agree or edges or bits or test_stored) and not instruction_sets" \
    tests/test_ops.py tests/test_build.py tests/test_threads.py tests/test_stored.py
