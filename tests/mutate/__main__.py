"""Settings that must precede NumPy, and the command."""
import os
import sys

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")                     # the processes side by side are what fills the cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")         # nor does a thread that waits keep one from its neighbor
sys.dont_write_bytecode = True                              # tests are imported, but nothing is written next to them

from tests.mutate.command import main  # noqa: E402

sys.exit(main())
