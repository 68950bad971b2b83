"""Data with the statistics of the published sets, which nobody may ship."""
