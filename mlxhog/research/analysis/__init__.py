"""The analysis of a real model: conflicts and staleness, the theorems' bounds, advice."""
