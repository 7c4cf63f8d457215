"""`python -m pyllama` runs the command line."""
import sys

from pyllama.cli.main import main

sys.exit(main())
