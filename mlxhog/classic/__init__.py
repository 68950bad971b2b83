"""The Hogwild paper's own problems, solved by several processes on one arena: `mlxhog classic`.

config        options, the schemes by name, and the settings of one run
problem       the protocol of a problem; the problems are in `problems/`
datasets      the data of the problems; `generators` draws them, `loaders/` reads them from files
session       one problem in its arena: runs the epochs, measures after each, counts lost updates
dispatcher    deals the examples of an epoch to worker processes and replaces those that die
worker        one process: its arena, the rounds, one native call for each share of examples
result        the result of a run: JSON, a table, plain words
"""
