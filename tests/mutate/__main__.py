"""Two settings that must precede NumPy, and the command."""
import os
import sys

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")                     # the processes side by side are what fills the cores
sys.dont_write_bytecode = True                              # tests are imported, but nothing is written next to them

from tests.mutate.command import main  # noqa: E402

sys.exit(main())
