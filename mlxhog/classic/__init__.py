"""The Hogwild paper's own problems, solved by several processes on one arena: `mlxhog classic`.

config        options, the schemes by name, and the settings of one run
problem       what a problem is; `problems/` has them
datasets      their data; `generators` draws them, `loaders/` reads them from files
session       one problem in its arena: epoch after epoch, measured in between; lost updates counted
dispatcher    the examples of an epoch dealt to processes, the dead replaced
worker        one process: its arena, the rounds, a native call for each share that it is dealt
result        the outcome of a run: JSON, a table, plain words
"""
