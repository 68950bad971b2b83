"""Package optim."""
