"""One training run: plan, supervisor, workers, monitor, checkpoints, resume."""
