"""The plan of a run: what it will be, decided before anything starts."""
