"""The operators as native CPU kernels, behind the automatic differentiation of each framework."""
