"""Run folders and checkpoints: what is in them, how they are written and read."""
