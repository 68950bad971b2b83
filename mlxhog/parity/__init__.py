"""Do all backends compute the same? One computation by every side, and every number compared.

A *subject* says what is computed: a model with parameters and tokens, or a cell, or single
operators (`subject.py`). It comes from a recorded case (`cases.py`) or from an architecture or a
checkpoint (`architectures.py`). A *side* is who computes it: NumPy in float64, a framework on a
device with one form of its kernels, a peer (`sides.py`); what was recorded is a side too, which has
computed already. Every side gives arrays by name (`Results`), and `compare.py` lays any two of them
side by side, by the tolerances of `tolerances.py`.
"""
