"""Run folders and checkpoints: their files, and how these are written and read."""
