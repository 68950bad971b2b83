"""Test vectors for implementations in any language: equations, cases, tolerances, their files.

`FORMAT.md` describes the files. A *case* (`case.py`) has inputs, exact results and how far a
program's may be from them. `equations.py` says what a set of equations is; `cells.py` has those of
cells, `layers.py` of layers and models; `allowed.py` derives the tolerances, and `export.py` writes
a set of cases.
"""
