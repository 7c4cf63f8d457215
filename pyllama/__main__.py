"""`python -m pyllama` is `pyllama`."""
import sys

from pyllama.cli import main

sys.exit(main())
