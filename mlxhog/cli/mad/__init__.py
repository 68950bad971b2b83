"""`mlxhog mad`: tasks, candidates and searches; the list of its commands."""

COMMANDS = {
    "tasks": ("listing.tasks", "the tasks: what each tests, its settings"),
    "suites": ("listing.suites", "the suites: their tasks, runs and width"),
    "layers": ("listing.layers", "the layers a candidate may have, and their numbers"),
    "data": ("data.data", "write the rows of a task to a file"),
    "show": ("listing.show", "layers, shapes, parameters and state of an architecture"),
    "train": ("train.train", "train one candidate on one task, with one worker or several"),
    "bench": ("study.bench", "the score of architectures over a suite of tasks"),
    "search": ("study.search", "search a space of architectures, several at once"),
    "resume": ("study.resume", "continue a study after any stop"),
    "board": ("board.board", "the leaderboard of a study"),
    "plot": ("board.plot", "the plots of a study, and one page with all of them"),
    "vote": ("winner.vote", "the architecture that the best candidates vote for, slot by slot"),
    "scale": ("winner.scale", "an architecture made deeper, for mlxhog train"),
}
"""Command -> its function in this package, and a line of help."""

HELP = """\
mlxhog mad: Mechanistic Architecture Design, tasks that distinguish architectures

usage: mlxhog mad COMMAND [options]

{commands}

examples:
  mlxhog mad data --task in-context-recall --set vocab=16 --set seq_len=32 --out cr.npz
  mlxhog mad train --task in-context-recall --layers "mlstm swiglu mlstm swiglu"
  mlxhog mad search --space space-small --suite smoke --parallel 2 --study first
  mlxhog mad board first

`mlxhog mad COMMAND --help` lists the options of a command."""
