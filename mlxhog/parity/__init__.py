"""Do all backends compute the same? Every side computes one subject; all numbers are compared.

A *subject* is a model with parameters and tokens, a cell, or single operators (`subject.py`). It
comes from an architecture, a checkpoint (`sources.py`) or a recorded case (`cases.py`). A *side*
computes it: NumPy in float64, a framework on a device with one form of its kernels, or a peer
(`subject.py`). Recorded results are a side, too. Each backend computes in a process of its own
(`compute.py`). Every side returns arrays by name (`Results`); `compare.py` compares two of them by
the tolerances of `tolerances.py`; `comparison.py` reports the result.
"""
