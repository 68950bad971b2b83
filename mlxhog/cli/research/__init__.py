"""`mlxhog research`: theory, simulator, and the Hogwild paper's own problems."""
