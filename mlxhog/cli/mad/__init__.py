"""`mlxhog mad`: tasks, candidates and searches."""
