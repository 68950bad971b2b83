"""`mlxhog mad`: tasks, candidates and searches; dispatches to its subcommands."""

import importlib
import sys

from mlxhog.errors import did_you_mean

COMMANDS = {
    "tasks": ("listing.run_tasks", "the tasks: what each tests, its settings"),
    "suites": ("listing.run_suites", "the suites: their tasks, runs and width"),
    "layers": ("listing.run_layers", "the layers a candidate may have, and their numbers"),
    "data": ("data.run_data", "write the rows of a task to a file"),
    "check": ("data.run_check", "check the rows of a task for its invariants"),
    "show": ("show.run", "layers, shapes, parameters and state of an architecture"),
    "train": ("train.run", "train one candidate on one task, with one worker or several"),
    "bench": ("search.run_bench", "the score of architectures over a suite of tasks"),
    "search": ("search.run_search", "search a space of architectures, several at once"),
    "resume": ("search.run_resume", "continue a study after any stop"),
    "board": ("board.run_board", "the leaderboard of a study"),
    "compare": ("board.run_compare", "two candidates of a study, run by run, with a p-value"),
    "plot": ("board.run_plot", "the plots of a study, and one page with all of them"),
    "vote": (
        "winner.run_vote",
        "the architecture that the best candidates vote for, slot by slot",
    ),
    "scale": ("winner.run_scale", "an architecture made deeper, for mlxhog train"),
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


def run(arguments: list[str]) -> int:
    """Run one subcommand and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = (f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
        print(HELP.format(commands="\n".join(lines)))
        return 0
    if arguments[0] not in COMMANDS:
        word = arguments[0]
        print(f"no command 'mad {word}'{did_you_mean(word, COMMANDS)}", file=sys.stderr)
        return 2
    module, function = COMMANDS[arguments[0]][0].split(".")
    command = getattr(importlib.import_module(f"mlxhog.cli.mad.{module}"), function)
    code: int = command(arguments[1:])
    return code
