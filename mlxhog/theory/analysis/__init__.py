"""`mlxhog analyze`: a real model's conflicts and staleness, what theory says of them, advice.

In this order:

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
result          what was found; `report` and `plots` show it
"""
