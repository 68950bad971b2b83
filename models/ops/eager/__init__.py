"""The eager operators of each framework, and in float64, the reference of all others."""
