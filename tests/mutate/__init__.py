"""The mutation score of our tests: `python -m tests.mutate` plants bugs one at a time and counts those caught."""
