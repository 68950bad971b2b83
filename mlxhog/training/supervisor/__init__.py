"""The supervisor of a run: it starts workers, watches them, saves, and reports."""
