"""The Hogwild paper's own problems, solved by several processes on one arena: `mlxhog classic`.

config        options, and the settings of one run
problem       what a problem is; `problems/` has them, each with a plain NumPy reference
datasets      their data; `generators/` draws them, `loaders/` reads them from files
schemes       who may write when
session       one problem in its arena: `train`, or `compare` with serial
run           epoch after epoch, measured in between; lost updates counted
dispatcher    the examples of an epoch dealt to processes, the dead replaced
worker        one process: a native call for each share that it is dealt
layout        what lies where in the arena, and the words by which host and workers talk
result        what a run came to: JSON, a table, plain words
"""
