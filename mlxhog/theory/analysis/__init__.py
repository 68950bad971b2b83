"""`mlxhog analyze`: a real model's conflicts and staleness, the theorems' bounds, advice.

In this order:

sampling    blocks of a model; gradients of sampled batches, in a process of their own
written     the steps that an optimizer writes for them
conflicts   Omega, rho, Delta, p_conf of every block; rows of the embedding and of tables
staleness   updates by others between read and write, of a run or a short one
advice      the facts that the table of rules advises by
analyze     makes the measurements, with a short lock-free run
"""
