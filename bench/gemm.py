"""Time our matrix product beside OpenBLAS's and MKL's, at the shapes of training:     python -m bench.gemm

Each library runs in a process of its own, and the processes take turns (rotation.py).  Our threads divide every product
among themselves in the same way (csrc/cpu/gemm.c); a library only sees single-threaded calls.  A weight w [E D] and N
tokens need three products a step; here each is added to an existing matrix, as gradients are.  The other libraries come
from PyTorch's environment, where `make bench-gemm` installs them, or from --rivals openblas=/usr/lib/libopenblas.so
"""
import argparse
import json
import math
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.progress import track

from bench.rotation import ROOT, Worker, on_threads, rotate
from bench.table import show
from pyllama import machine

WEIGHTS = [(128, 128), (288, 288), (768, 288), (288, 768), (768, 768), (2048, 768), (768, 2048)]    # E, D
HEADS = [(32000, 128), (32000, 288), (32000, 768)]
TOKENS = [2048, 8192]
SQUARE = 4096
SECONDS = 0.2                                           # per turn
LIBRARIES = {"openblas": "lib/python*/site-packages/scipy_openblas32/lib/libscipy_openblas*.so",
             "mkl": "lib/libmkl_rt.so.*"}
COLUMNS = {"product": "{product}", "M": "{M}", "N": "{N}", "K": "{K}", "ours GFLOP/s": "{ours:.0f}",
           "OpenBLAS": "{openblas:.0f}", "MKL": "{mkl:.0f}", "ours / better": "{ratio:.2f}", "disturbed": "{disturbed}"}


def products():
    """Yield (name, shapes of the two arrays, (M, N, K)) of each weight's products and of one large square product."""
    for N, (E, D) in [(N, w) for w in WEIGHTS for N in TOKENS] + [(TOKENS[0], w) for w in HEADS]:
        yield "y = x wᵀ", ((N, D), (E, D)), (N, E, D)
        yield "dx = dy w", ((N, E), (E, D)), (N, D, E)
        yield "dw = dyᵀ x", ((N, E), (N, D)), (E, D, N)
    yield "y = x wᵀ", ((SQUARE, SQUARE), (SQUARE, SQUARE)), (SQUARE, SQUARE, SQUARE)


def installed_libraries(environment):
    """{library: path} of the libraries in this environment."""
    paths = {name: sorted(Path(environment).glob(pattern)) for name, pattern in LIBRARIES.items()}
    return {name: path[0] for name, path in paths.items() if path}


def row(product, shape, turns):
    """The record of one product, from {library: [(answer, disturbed), ...]}."""
    operations = 2 * math.prod(shape)
    rates = {name: operations / statistics.median(statistics.median(answer["seconds"]) for answer, _ in answers) / 1e9
             for name, answers in turns.items()}
    rivals = [rate for name, rate in rates.items() if name != "ours"]
    return {"product": product, **dict(zip("MNK", shape, strict=True)), **dict.fromkeys(LIBRARIES), **rates,
            "ratio": rates["ours"] / max(rivals) if rivals else None,
            "disturbed": sum(disturbed for answers in turns.values() for _, disturbed in answers)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each library")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--peers", default=ROOT / ".peers", help="the environment with the other libraries")
    parser.add_argument("--rivals", nargs="+", metavar="NAME=PATH", help="compare with these libraries instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    rivals = dict(rival.split("=", 1) for rival in options.rivals) if options.rivals \
        else installed_libraries(options.peers)
    environment = on_threads(1) | {"PYLLAMA_NUM_THREADS": str(options.threads), "MKL_THREADING_LAYER": "SEQUENTIAL"}
    records = []
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, "bench.products", **environment, PYLLAMA_BLAS=str(path)))
                   for name, path in {"ours": "", **rivals}.items()]
        for product, shapes, shape in track(list(products()), "products", disable=not sys.stderr.isatty()):
            requests = {worker.name: {"product": product, "shapes": shapes, "seconds": SECONDS} for worker in workers}
            turns = {worker.name: [] for worker in workers}
            for worker, answer, disturbed in rotate(workers, requests, options.rounds):
                turns[worker.name].append((answer, disturbed))
            records.append(row(product, shape, turns))
            if options.json:
                print(json.dumps(records[-1]), flush=True)
    if not options.json:
        show(COLUMNS, records)
        if rivals:
            print(f"ours / better: geometric mean {statistics.geometric_mean(r['ratio'] for r in records):.3f}, "
                  f"least {min(r['ratio'] for r in records):.3f}")


if __name__ == "__main__":
    main()
