"""Train a small xLSTM language model on your own text, and talk to it while it learns.

Examples:
    train
    train --data notes/ --time 10m --workers 'torch:cpu*2'
    generate latest --prompt "Fellow citizens"
    doctor
    parity tiny
    mad search --space space-small --suite smoke
"""

# Each command stands in the file of its name; the first line of the file's docstring is its line in
# `mlxhog --help`, and the whole docstring its help. Dispatch looks at the first arguments before it
# imports one, so a command imports only its own modules, and a mistyped one is reported at once.

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO, cast

from mlxhog.base import darwin
from mlxhog.base.output import PATIENCE_S, LastingStream, OutputLost, lasting, say_once
from mlxhog.display.streams import printable_output
from mlxhog.errors import (
    INTERRUPTED,
    LACKS,
    WRONG_INPUT,
    MlxhogError,
    did_you_mean,
    is_lost_gpu,
    message_of,
    shown,
)

if TYPE_CHECKING:
    from mlxhog.cli.frame import Command

GROUPS = {
    "": {
        "train and use": "train generate chat serve eval convert",
        "runs": "runs show plot report compare replay",
        "while it runs": "watch dashboard join stop cluster",
        "models": "models parity",
        "architectures": "mad research",
        "set-up": "doctor cache options completion",
    },
    "mad": {
        "tasks and candidates": "tasks suites layers data show train",
        "studies": "search bench resume leaderboard plot consensus deepen",
    },
    "research": {"commands": "analyze advise simulate classic"},
}
"""First word of a command, or "" -> title -> the commands below it in the help; others come last.

"mad" and "research" are folders of files, and the first of the two words of their commands.
"""

ACTIONS = ("runs rm", "cache clear", "parity export", "parity judge")
"""Functions of a command's file that are commands, too."""

EXIT_CODES = """\
exit codes: 0 done, 1 a check failed or workers died too often, 2 wrong input, 3 a package or
resource is missing or the last checkpoint was not saved, 4 diverged, 130 interrupted"""


def _files(family: str) -> dict[str, str]:
    folder, listed = os.path.join(__path__[0], family), " ".join(GROUPS[family].values()).split()
    names = sorted(name.removesuffix(".py") for name in os.listdir(folder) if name.endswith(".py"))
    files = {name: os.path.join(folder, f"{name}.py") for name in names if name != "__init__"}
    packages = (name for name in GROUPS if name and not family)
    files |= {name: os.path.join(folder, name, "__init__.py") for name in packages}
    return {name: files[name] for name in [*listed, *(n for n in files if n not in listed)]}


COMMANDS = {family: _files(family) for family in GROUPS}
"""First word of a command, or "" -> its commands, each with the file that it stands in."""


def names() -> list[str]:
    """Return the names of all commands, such as "train" and "mad search"."""
    of_families = [f"{first} {name}" for first in GROUPS if first for name in COMMANDS[first]]
    return [*(name for name in COMMANDS[""] if name not in GROUPS), *ACTIONS, *of_families]


def summary(file: str) -> str:
    """Return the first line of a file's docstring; the file is not imported."""
    with open(file, encoding="utf-8") as lines:
        return next(lines).strip().lstrip("r").strip('"').removesuffix(".")


def main(arguments: Sequence[str] | None = None, *, has_output: bool = True) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: those after `mlxhog`; those of this process by default.
        has_output: whether standard output was open when this process began.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    ends = _only_prints(argv)
    if ends and (sys.stdout is None or not has_output):
        say_once("the output cannot be written: standard output is closed")
        return LACKS
    out, err, code = LastingStream(sys.stdout, ends=ends), lasting(sys.stderr), 0
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        try:
            with suppress(OutputLost):  # `failure` says why
                try:
                    with printable_output():
                        code = _run(argv)
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


def _only_prints(argv: list[str]) -> bool:
    """Whether output is all that the command does, so that it ends when nobody reads it."""
    asks = not {"-h", "--help", "--help-all", "--dry-run", "-V", "--version"}.isdisjoint(argv)
    if (
        asks
        or argv[:1] == ["help"]
        or argv in ([], ["research", "classic"], *([f] for f in GROUPS))
    ):
        return True
    try:
        return argv[0] in COMMANDS[""] and not find(argv)[0].writes
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps it in an import
            raise
        return False  # `_run` meets the same error, and explains it


def _run(argv: list[str]) -> int:
    """Run the command that the arguments name, and return its exit code."""
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [*argv[1:], "--help"]
    family = argv[0] if argv[:1] and argv[0] in GROUPS else ""
    rest, known = argv[1:] if family else argv, COMMANDS[family]
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(_help(family))
        return 0
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version  # 10 ms, for this command only

        print(f"mlxhog {version('mlxhog')}")
        return 0
    if rest[0] not in known:
        hint = did_you_mean(rest[0], [*known, "--help", "--version"])
        name = f"{family} {rest[0]}".lstrip()
        print(f"no command {name!r}{hint or '; mlxhog help lists them'}", file=sys.stderr)
        return WRONG_INPUT
    # Torch reads it at its import. A pool that spins between its jobs takes the cores from native
    # operators: beside other programs, prompts take ten times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        os.getcwd()
        command, rest = find(argv)
        return command(rest)
    except (Exception, KeyboardInterrupt) as error:
        if (explained := _explained(argv[0], error)) is None:
            raise
    message, code = explained
    print(message, file=sys.stderr)
    return code


def _help(family: str) -> str:
    """Return the help of all commands, or of those of a family."""
    known, groups = COMMANDS[family], {title: own.split() for title, own in GROUPS[family].items()}
    groups["others"] = [*known][sum(map(len, groups.values())) :]
    package = importlib.import_module(f"{__name__}.{family}".rstrip("."))
    about, _, examples = (package.__doc__ or "").partition("\n\nExamples:\n")
    prefix, width = f"mlxhog {family}".rstrip(), max(map(len, known))
    blocks = [f"{prefix}: {about}", f"usage: {prefix} COMMAND [options]"]
    for title, own in groups.items():
        rows = [f"  {name:{width}}  {summary(known[name])}" for name in own]
        blocks += ["\n".join([f"{title}:", *rows])] * bool(rows)
    shown = (f"  mlxhog {line.strip()}" for line in examples.strip().splitlines())
    blocks.append("\n".join(["examples:", *shown]))
    blocks.append(f"`{prefix} COMMAND --help` lists the options of a command.")
    return "\n\n".join(blocks) + f"\n{EXIT_CODES}" * (not family)


def find(argv: Sequence[str]) -> "tuple[Command, list[str]]":
    """Return the command that begins some arguments, and the arguments after it.

    Args:
        argv: such as "runs", "rm", "latest"; they begin with one of `names()`.
    """
    first, second = [*argv, "", ""][:2]
    action = second if f"{first} {second}" in ACTIONS else "run"
    module = f"{first}.{second}" if first in GROUPS else first
    command: Command = getattr(importlib.import_module(f"{__name__}.{module}"), action)
    return command, list(argv[1 + (action != "run" or first in GROUPS) :])


def _explained(command: str, error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit code of an error; None if it is a fault of the program."""
    from mlxhog.base.resources import shortage

    if lack := shortage(error):
        return f"{lack}; ask for smaller sizes", LACKS
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
            ), WRONG_INPUT
        case OSError(errno=errno.EACCES | errno.ENAMETOOLONG | errno.EPERM, filename=name) if name:
            return (
                f"cannot use {shown(str(name))}: {darwin.reason(error)}; name another path, or "
                "make it usable for you"
            ), WRONG_INPUT
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            from mlxhog.base.processes import descriptors_text

            return f"no more files can be opened: {descriptors_text()}", LACKS
        case OSError(errno=errno.EDQUOT | errno.EFBIG | errno.EIO | errno.ENOSPC | errno.EROFS):
            from mlxhog.base.durable import explained

            return f"a file cannot be written: {explained(error)}", LACKS
    return None
