"""This machine and its share for workers: cores, caches, verdicts, processes."""
