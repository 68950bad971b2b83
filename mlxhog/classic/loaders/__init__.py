"""Readers of data files, in the formats of the published sets."""
