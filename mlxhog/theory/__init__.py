"""Conditions of lock-free training: sparsity and conflict measured, and bounds.

    hypergraph  Omega, Delta, rho and conflict of a whole data set, exactly
    supports    the same quantities from sampled gradients, with intervals
    bounds      what the theorems say, with whether they apply
    local_steps how many local steps between two averages

`analysis/` puts them together for a real model: the command `mlxhog analyze`. `simulator/` predicts
what strategies do (`mlxhog simulate`), `advisor/` which of them to take (`mlxhog advise`).

Which of two trainings is better, by the command `mlxhog compare`: `pairs` says what is compared,
`pair_runs` trains and keeps it, `paired_test` decides.

Source of the quantities: Niu, Recht, Re, Wright 2011, arXiv:1106.5730, section 2.
"""
