"""`mlxhog analyze`: a real model's conflicts and staleness, the theorems' bounds, advice."""
