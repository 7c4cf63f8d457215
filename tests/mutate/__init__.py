"""The mutation score of our own tests: `python -m tests.mutate` plants bugs, one at a time, and counts the caught."""
