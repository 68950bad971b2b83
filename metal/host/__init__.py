"""Checks and runs the Metal sources on a machine without an Apple GPU."""
