"""One training run: plan, session of workers, monitor, checkpoints, resume."""
