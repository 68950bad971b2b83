"""The command line: find the command, run it, turn errors into messages and exit codes.

Dispatch looks at the first words before it builds a parser, so a command imports only its own
modules, and a mistyped one is reported before a framework is loaded.
"""

import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO, cast

from mlxhog.base import darwin
from mlxhog.base.output import PATIENCE_S, LastingStream, OutputLost, lasting, say_once
from mlxhog.display.streams import printable_output
from mlxhog.errors import MlxhogError, did_you_mean, is_lost_gpu, message_of, shown

if TYPE_CHECKING:
    from mlxhog.cli.frame import Command

GROUPS = {
    "train and use": {
        "train": "train a model; with no options a minute on text that comes with the package",
        "generate": "write text with a run or a checkpoint",
        "serve": "OpenAI's HTTP interface to a checkpoint, or to a run while it trains",
        "eval": "bits per byte and perplexity of a text, file by file",
        "convert": "checkpoints of transformers, of the xlstm package, and ours",
    },
    "runs": {
        "runs": "the list of runs; `runs rm` removes some",
        "show": "one run: model, data, options, workers, checkpoints, last numbers",
        "plot": "the curves of runs, in the terminal and as one picture",
        "report": "one HTML file about one run or several, with curves, workers and samples",
        "compare": "which of two ways to train is better, with a sequential test",
        "replay": "repeat a recorded lock-free run, bit for bit",
    },
    "while it runs": {
        "watch": "the live table of a run in another terminal",
        "dashboard": "a page on this machine that follows a run",
        "join": "add workers to a run while it trains",
        "leave": "take a worker away from a run",
        "stop": "end a run from another terminal, with a checkpoint",
        "cluster": "start a cluster, so that several machines train one model",
    },
    "models": {
        "models": "list the architectures, or print one as a file to change",
        "parity": "compare the numbers of all backends: of a model, a checkpoint, a recorded case",
    },
    "architectures": {
        "mad": "Mechanistic Architecture Design: tasks, candidates, architecture search",
        "research": "lock-free training studied: theory, simulator, the Hogwild paper's problems",
    },
    "set-up": {
        "doctor": "check this machine: backends, two writers at once, every Metal kernel",
        "cache": "prepared texts and compiled kernels that are kept; `cache clear` removes them",
        "options": "every option of every command: default, unit, meaning, and whose it is",
        "completion": "a script for completion of commands, options and runs in bash or zsh",
    },
}
"""Title -> its commands, each with a line of help."""

COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}

MAD = {
    "tasks": "the tasks: what each tests, its settings",
    "suites": "the suites: their tasks, runs and width",
    "layers": "the layers a candidate may have, and their numbers",
    "data": "write the rows of a task to a file",
    "show": "layers, shapes, parameters and state of an architecture",
    "train": "train one candidate on one task, with one worker or several",
    "bench": "the score of architectures over a suite of tasks",
    "search": "search a space of architectures, several at once",
    "resume": "continue a study after any stop",
    "leaderboard": "the candidates of a study, the best first",
    "plot": "the plots of a study, and one page with all of them",
    "consensus": "the architecture on which the best candidates agree, slot by slot",
    "deepen": "an architecture with more layers, for mlxhog train",
}
"""The commands of `mlxhog mad`, each with a line of help."""

RESEARCH = {
    "analyze": "is lock-free training sound for a model: overlap, staleness, theorems, advice",
    "advise": "the best strategy for a model on this machine: measured, predicted, tried",
    "simulate": "throughput and staleness of each strategy, predicted without training",
    "classic": "the Hogwild paper's own problems, each way of writing",
}
"""The commands of `mlxhog research`, each with a line of help."""

HELP = """\
mlxhog: train a small xLSTM language model on your own text, and talk to it while it learns

usage: mlxhog COMMAND [options]

{commands}

examples:
  mlxhog train
  mlxhog train --data notes/ --time 10m --workers torch:cpu*2
  mlxhog generate latest --prompt "Fellow citizens"
  mlxhog doctor
  mlxhog parity tiny
  mlxhog mad search --space space-small --suite smoke

`mlxhog help COMMAND` lists the options of a command.
exit codes: 0 done, 1 a check failed or workers died too often, 2 wrong input, 3 a package or
resource is missing or the last checkpoint was not saved, 4 diverged, 130 interrupted"""

MAD_HELP = """\
mlxhog mad: Mechanistic Architecture Design, tasks that distinguish architectures

usage: mlxhog mad COMMAND [options]

{commands}

examples:
  mlxhog mad data --task in-context-recall --task-set vocab=16 --task-set seq_len=32 --output cr.npz
  mlxhog mad train --task in-context-recall --layers "mlstm swiglu mlstm swiglu"
  mlxhog mad search --space space-small --suite smoke --parallel 2 --study first
  mlxhog mad leaderboard first

`mlxhog mad COMMAND --help` lists the options of a command."""

RESEARCH_HELP = """\
mlxhog research: lock-free training studied

usage: mlxhog research COMMAND [options]

{commands}

examples:
  mlxhog research analyze latest
  mlxhog research advise tiny
  mlxhog research simulate --workers 16 --inject-stragglers 1=10
  mlxhog research classic svm --workers 2

`mlxhog research COMMAND --help` lists the options of a command."""

FAMILIES = {"mad": (MAD_HELP, MAD), "research": (RESEARCH_HELP, RESEARCH)}
"""First word of commands of two words -> its help, and its commands."""

_MODULES = {
    "checks": "doctor parity replay", "generate": "generate", "research.analyze": "advise",
    "models": "convert", "options": "completion", "runs": "show join leave stop",
    "servers": "dashboard cluster serve", "watch": "plot report",
    "mad.listing": "tasks suites layers show", "mad.train": "data train",
    "mad.results": "leaderboard plot consensus deepen", "mad.study": "search bench resume",
}  # fmt: skip
PLACES = {"eval": "generate.evaluate", "runs rm": "runs.remove", "cache clear": "cache.clear"} | {
    f"{module.rpartition('.')[0]} {name}".lstrip(): f"{module}.{name}"
    for module, names in _MODULES.items()
    for name in names.split()
}
PLACES |= {
    f"research {name}": f"research.{name}.run" for name in ("analyze", "classic", "simulate")
}
"""Words of a command -> its function, if that is not `run` in the module of its name."""

LACKS, INTERRUPTED = 3, 130


def main(arguments: Sequence[str] | None = None, *, has_output: bool = True) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: words after `mlxhog`; those of this process by default.
        has_output: whether standard output was open when this process began.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    ends = _only_tells(words)
    if ends and (sys.stdout is None or not has_output):
        say_once("the output cannot be written: standard output is closed")
        return LACKS
    out, err, code = LastingStream(sys.stdout, ends=ends), lasting(sys.stderr), 0
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        try:
            with suppress(OutputLost):  # `failure` says why
                try:
                    with printable_output():
                        code = _answer(words)
                finally:  # --help ends with SystemExit
                    out.end(PATIENCE_S if code == INTERRUPTED or not ends else None)
            is_unread = isinstance(out.failure, BrokenPipeError)
            if out.failure is None or (ends and is_unread):
                return code
            why = getattr(out.failure, "strerror", None) or message_of(out.failure)
            if not is_unread:
                print(f"the output cannot be written: {why}", file=sys.stderr)
            return code or LACKS
        finally:
            err.drain()


def _only_tells(words: list[str]) -> bool:
    """Whether output is all that the command does, so that it ends when nobody reads it."""
    asks = not {"-h", "--help", "--help-all", "--dry-run", "-V", "--version"}.isdisjoint(words)
    if (
        asks
        or words[:1] == ["help"]
        or words in ([], ["research", "classic"], *([name] for name in FAMILIES))
    ):
        return True
    try:
        return words[0] in COMMANDS and not find(words)[0].writes
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps it in an import
            raise
        return False  # `_answer` meets the same error, and explains it


def _answer(words: list[str]) -> int:
    """Run the command that the words name, and return its exit code."""
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    family = words[0] if words[:1] and words[0] in FAMILIES else ""
    rest = words[1:] if family else words
    text, known = FAMILIES.get(family, (HELP, COMMANDS))
    if not rest or rest[0] in ("-h", "--help", "help"):
        _print_help(text, {"commands": known} if family else GROUPS)
        return 0
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version  # 10 ms, for this command only

        print(f"mlxhog {version('mlxhog')}")
        return 0
    if rest[0] not in known:
        hint = did_you_mean(rest[0], [*known, "--help", "--version"])
        name = f"{family} {rest[0]}".lstrip()
        print(f"no command {name!r}{hint or '; mlxhog help lists them'}", file=sys.stderr)
        return 2
    # Torch reads it at its import. A pool that spins between its jobs takes the cores from native
    # operators: beside other programs, prompts take ten times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        os.getcwd()
        command, rest = find(words)
        return command(rest)
    except (Exception, KeyboardInterrupt) as error:
        if (explained := _explained(words[0], error)) is None:
            raise
    message, code = explained
    print(message, file=sys.stderr)
    return code


def _print_help(text: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    width = max(len(name) for group in groups.values() for name in group)
    listed = (
        "\n".join([f"{title}:", *(f"  {name:{width}}  {about}" for name, about in group.items())])
        for title, group in groups.items()
    )
    print(text.format(commands="\n\n".join(listed)))


def names() -> list[str]:
    """Return the words of every command."""
    of_families = [f"{first} {name}" for first, (_, of) in FAMILIES.items() for name in of]
    alone = [name for name in COMMANDS if name not in FAMILIES]
    return [*alone, "runs rm", "cache clear", *of_families]


def _name(words: Sequence[str]) -> str:
    """Return the words of the command that begins some words."""
    name = " ".join(words[:2])
    return name if name in PLACES else " ".join(words[:1])


def find(words: Sequence[str]) -> "tuple[Command, list[str]]":
    """Return the command that begins some words, and the words after it.

    Args:
        words: such as "runs", "rm", "latest"; they begin with one of `names()`.
    """
    name = _name(words)
    module, _, function = PLACES.get(name, f"{name}.run").rpartition(".")
    command: Command = getattr(importlib.import_module(f"mlxhog.cli.{module}"), function)
    return command, list(words[len(name.split()) :])


def _explained(command: str, error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit code of an error; None if it is a fault of the program."""
    from mlxhog.base.resources import shortage

    if words := shortage(error):
        return f"{words}; ask for smaller sizes", LACKS
    match error:
        case MlxhogError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "interrupted", INTERRUPTED
        case RuntimeError() if is_lost_gpu(error):
            return (
                "macOS ended the work of the GPU, which kept the display waiting: "
                f"{message_of(error)}; run the command again, on the CPU (mlx:cpu) or with the "
                "display off"
            ), LACKS
        case ImportError() if (error.name or "mlxhog").partition(".")[0] != "mlxhog":
            return (
                f"mlxhog {command} cannot load the package {error.name}: {message_of(error)}; if "
                "memory is short, end other programs or raise the limit (ulimit -v), else install "
                "it again: python -m pip install --force-reinstall mlxhog"
            ), LACKS
        case FileNotFoundError(filename=None):
            return (
                "the current folder cannot be used; was it deleted or moved? change to another "
                "one: cd ~"
            ), 2
        case OSError(errno=errno.EACCES | errno.ENAMETOOLONG | errno.EPERM, filename=name) if name:
            return (
                f"cannot use {shown(str(name))}: {darwin.reason(error)}; name another path, or "
                "make it usable for you"
            ), 2
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            from mlxhog.base.processes import descriptors_text

            return f"no more files can be opened: {descriptors_text()}", LACKS
        case OSError(errno=errno.EDQUOT | errno.EFBIG | errno.EIO | errno.ENOSPC | errno.EROFS):
            from mlxhog.base.durable import explained

            return f"a file cannot be written: {explained(error)}", LACKS
    return None
