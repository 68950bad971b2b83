"""Foundations of all other parts: files, quantities, processes, and facts of the machine."""
