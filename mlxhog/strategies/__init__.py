"""Package strategies."""
