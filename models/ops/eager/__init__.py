"""The operators in plain framework code, and in float64 NumPy, the reference of all others."""
