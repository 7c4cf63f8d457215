"""Where the pages of the site are, and the repository."""
from pathlib import Path

SITE = Path(__file__).parents[1]
ROOT = SITE.parents[1]
