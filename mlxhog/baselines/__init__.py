"""Scores of a text without a network, with which those of a network are compared."""
