"""When lock-free training is sound: sparsity and conflict measured, bounds, and a simulator.

    supports     which coordinates each sampled gradient touches, as bitmaps
    hypergraph   Omega, Delta, rho and conflict of a whole data set, exactly
    estimators   the same quantities from a sample, with intervals
    token_rows   the rows of an embedding under a token distribution, in closed form
    bounds       what the theorems say, with whether they apply
    backoff      the 1/k schedule and its rate
    staleness    how late updates were
    simulator    what other machines would do: predictions from measured times

`mlxhog analyze` puts them together for a real model, in this order:

    named           what it was given: an architecture, settings, a run, a checkpoint
    blocks          the model's parameters in blocks, and in lines, stripes and rows
    sampling        gradients of sampled batches, in a process of their own, as bitmaps
    conflicts       Omega, rho, Delta, p_conf of every block
    embedding_rows  rows of the embedding under real batches, counted
    ageing          what a gradient is worth that comes late
    observed        staleness and lost updates of a run
    probe           a short lock-free run, made to be looked at
    conditions      the theorems' rules at these numbers
    advice          what to do
    analyze         all of it, once
    analysis        what was found; `report` and `plots` show it

Source of the quantities: Niu, Recht, Re, Wright 2011, arXiv:1106.5730, section 2.
"""
