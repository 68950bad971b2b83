"""Real data from files in the formats that the published sets come in."""
