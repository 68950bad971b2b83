"""Conditions of lock-free training: measured sparsity and conflict, and bounds.

    hypergraph  Omega, Delta, rho and conflict of a whole data set, exactly
    supports    the same quantities from sampled gradients, with intervals
    bounds      the theorems' bounds, and whether they apply
    rules       the one engine of rules, before and after a run
    stats       confidence limits
    target      the model that a command-line argument names
    short_runs  trainings of some seconds that measure

`analysis/` puts them together for a real model (`mlxhog analyze`). `simulator/` predicts speed and
staleness of strategies (`mlxhog simulate`); `advisor/` recommends one (`mlxhog advise`).

`mlxhog compare` finds the better of two trainings: `pairs` defines the comparison, `pair_runs`
trains and keeps its runs, `paired_test` decides.

Source of the quantities: Niu, Recht, Re, Wright 2011, arXiv:1106.5730, section 2.
"""
