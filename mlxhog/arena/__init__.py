"""Package arena."""
