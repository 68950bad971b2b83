"""When lock-free training is sound: sparsity and conflict measured, bounds, and a simulator.

    supports    which coordinates each sampled gradient touches, as bitmaps
    hypergraph  Omega, Delta, rho and conflict of a whole data set, exactly
    estimators  the same quantities from a sample, with intervals
    bounds      what the theorems say, with whether they apply
    staleness   how late updates were
    simulator   what other machines would do: predictions from measured times

`analysis/` puts them together for a real model: the command `mlxhog analyze`.

Source of the quantities: Niu, Recht, Re, Wright 2011, arXiv:1106.5730, section 2.
"""
