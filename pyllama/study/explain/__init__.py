"""The backward explorer: a training step of a model, recorded and written as a page that explains it."""
