"""Sides that compute the test vectors in Python, and their comparison with float64.

`foreign.py` computes cases by functions of others, `own.py` by the operators of this package,
`peers.py` by packages that are installed; `report.py` compares the results, case by case.
"""
