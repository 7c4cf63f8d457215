"""Training: the loop, optimizers, schedules, objectives, checkpoints and the run around them."""
