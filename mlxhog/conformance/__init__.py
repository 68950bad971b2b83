"""Parity of backends: every side computes one subject, and all tensors are compared.

A *subject* is a model with parameters and tokens, from an architecture or a checkpoint. A *side*
computes it: NumPy in float64, or a framework on a device with one implementation of its kernels
(`subject.py`, `engines.py`), each backend in a process of its own (`compute.py`). Every side
returns arrays by name (`Results`); `compare.py` compares two of them by the tolerances of
`tolerances.py`. `vectors/` has test vectors for implementations in other languages.
"""
