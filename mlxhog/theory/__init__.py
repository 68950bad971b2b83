"""Conditions of lock-free training: sparsity and conflict measured, and bounds.

    hypergraph  Omega, Delta, rho and conflict of a whole data set, exactly
    supports    the same quantities from sampled gradients, with intervals
    bounds      what the theorems say, with whether they apply

`analysis/` puts them together for a real model: the command `mlxhog analyze`.

Source of the quantities: Niu, Recht, Re, Wright 2011, arXiv:1106.5730, section 2.
"""
