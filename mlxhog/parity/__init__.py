"""Do all backends compute the same? One computation by every side, and every number compared.

A *subject* says what is computed: a model with parameters and tokens, or a cell, or single
operators (`subject.py`). It comes from an architecture, a checkpoint (`sources.py`) or a recorded
case (`cases.py`). A *side* is who computes it: NumPy in float64, a framework on a device with one
form of its kernels, a peer (`subject.py`); what was recorded is a side too, which has computed
already. Each backend computes in a process of its own (`compute.py`). Every side gives arrays by
name (`Results`), `compare.py` lays any two of them side by side by the tolerances of
`tolerances.py`, and `comparison.py` tells the outcome.
"""
