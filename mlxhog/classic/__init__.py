"""The Hogwild paper's own problems, solved by several processes on one arena: `mlxhog classic`.

config        options, the schemes by name, and the settings of one run
problem       the protocol of a problem; the problems are in `problems/`
datasets      the data of the problems; `generators` draws them, `loaders` reads them from files
run           one problem in its arena: runs the epochs, measures after each, counts lost updates
worker        the processes: their arena, their rounds, one native call for each share of examples
cyclades      conflict-free parts of the order, for the scheme of this name
result        the result of a run: JSON, a table, plain words
"""
