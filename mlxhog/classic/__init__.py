"""The Hogwild paper's own problems, solved by several processes on one arena: `mlxhog classic`.

config        options, the schemes by name, and the settings of one run
problem       the protocol of a problem; the problems are in `problems/`
datasets      the data of the problems; `generators` draws them, `loaders` reads them from files
run           one problem in its arena: rounds of workers, measures after each, lost updates
worker        the layout of the arena, and what workers call: one native call for each share
cyclades      conflict-free parts of the order, for the scheme of this name
result        the result of a run: JSON, a table, plain words
"""
