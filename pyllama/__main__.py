"""`python -m pyllama` is `pyllama`."""
import sys

from pyllama.cli.main import main

sys.exit(main())
