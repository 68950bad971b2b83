"""One training run: plan, supervisor, workers, monitor, checkpoints on the way, resume."""
