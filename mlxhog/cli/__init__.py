"""The command line: find the command, run it, turn errors into messages and exit codes.

Dispatch looks at the first word before it builds a parser, so a command imports only its own
modules, and a mistyped one is reported before a framework is loaded.
"""

import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO, cast

from mlxhog.errors import MlxhogError, did_you_mean, message_of
from mlxhog.report.streams import LastingStream, OutputLost, printable_output

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
        "board": "a page on this machine that follows a run",
        "join": "add workers to a run while it trains",
        "leave": "take a worker away from a run",
        "stop": "end a run from another terminal, with a checkpoint",
        "cluster": "start a cluster, so that several machines train one model",
    },
    "models": {
        "models": "list the architectures, or print one as a file to change",
        "parity": "compare the numbers of all backends: of a model, a checkpoint, a recorded case",
    },
    "research": {
        "mad": "Mechanistic Architecture Design: tasks, candidates, architecture search",
        "advise": "the best strategy for a model on this machine: measured, predicted, tried",
        "simulate": "pace and staleness of each strategy with given workers, without training",
        "analyze": "is lock-free training sound for a model: conflict, staleness, theorems, advice",
        "classic": "the Hogwild paper's own problems, scheme by scheme",
    },
    "set-up": {
        "doctor": "check this machine: backends, two writers at once, every Metal kernel",
        "options": "every option of every command: default, unit, meaning, and whose it is",
        "completion": "a script for completion of commands, options and runs in bash, zsh or fish",
    },
}
"""Title -> its commands, each with a line of help."""

COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}

HELP = """\
mlxhog: train a small xLSTM language model on your own text, and talk to it while it learns

usage: mlxhog COMMAND [options]

{commands}

examples:
  mlxhog train
  mlxhog train --data notes/ --time 10m --workers torch:cpu*2
  mlxhog generate latest --prompt "The"
  mlxhog doctor
  mlxhog parity tiny
  mlxhog analyze latest

`mlxhog help COMMAND` lists the options of a command.
exit codes: 0 done, 1 a check failed or workers died too often, 2 wrong input, 3 a package or
resource is missing or the last checkpoint was not saved, 4 diverged, 130 interrupted"""

ELSEWHERE = {
    "chat": "generate", "delete": "runs rm", "evaluate": "eval", "export": "convert",
    "fine-tune": "train --init-from RUN", "finetune": "train --init-from RUN",
    "list": "runs", "ls": "runs", "presets": "models", "resume": "train --resume RUN",
    "rm": "runs rm", "sample": "generate",
}  # fmt: skip
"""Frequent wrong command -> the right one."""

PLACES = {
    **{name: f"requests.{name}" for name in ("join", "leave", "stop")},
    **{name: f"requests.{name}" for name in ("join", "leave", "stop")},
    "advise": "analyze.advise", "board": "watch.board", "plot": "report.plot", "show": "runs.show",
    "runs rm": "runs.remove", "cluster numa": "cluster.numa",
}  # fmt: skip
"""Words of a command -> its function, if that is not `run` in the module of its name."""

PACKAGES = {
    "datasets": "datasets", "matplotlib": "matplotlib", "ml_dtypes": "ml_dtypes",
    "mlstm_kernels": "mlstm-kernels", "mlx": "mlx" if sys.platform == "darwin" else "'mlx[cpu]'",
    "numpy": "numpy", "psutil": "psutil",
    "pyarrow": "pyarrow", "ray": "ray", "rich": "rich", "safetensors": "safetensors",
    "scipy": "scipy", "starlette": "starlette", "tensorboard": "tensorboard",
    "tokenizers": "tokenizers", "torch": "torch", "transformers": "transformers",
    "uvicorn": "uvicorn", "xlstm": "xlstm", "yaml": "pyyaml",
}  # fmt: skip
"""Imported module -> its package for pip, as in pyproject.toml."""

READ_ONLY = (
    "help", "models", "options", "runs", "show", "watch", "analyze", "simulate", "completion",
    "-V", "--version",
)  # fmt: skip
"""Commands that change nothing."""

LACKS, INTERRUPTED = 3, 130


def main(arguments: Sequence[str] | None = None, *, has_output: bool = True) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: words after `mlxhog`; those of this process by default.
        has_output: whether standard output was open when this process began.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    only_tells = _only_tells(words)
    ends = only_tells or words[0] == "generate"
    if ends and not has_output:
        print("the output cannot be written: standard output is closed", file=sys.stderr)
        return LACKS
    out = LastingStream(sys.stdout, ends=ends)
    with (
        redirect_stdout(cast(TextIO, out)),
        redirect_stderr(cast(TextIO, LastingStream(sys.stderr))),
    ):
        code = 0
        try:
            with printable_output():
                code = _answered(words)
        except OutputLost:
            pass  # `failure` says why
        finally:  # argparse ends --help with SystemExit
            with suppress(OutputLost):
                out.flush()
        if out.failure is None or (only_tells and isinstance(out.failure, BrokenPipeError)):
            return code
        print(f"the output cannot be written: {out.failure.strerror}", file=sys.stderr)
        return code or LACKS


def _only_tells(words: Sequence[str]) -> bool:
    """Whether a command only prints, so that a closed pipe is not an error."""
    return (
        words in (["classic"], ["mad"])
        or not words
        or (words[0] in READ_ONLY and words[:2] != ["runs", "rm"])
        or words[:2] in (["mad", "show"], ["mad", "board"])
        or not {"-h", "--help", "--help-all", "--dry-run"}.isdisjoint(words)
    )


def _answered(words: list[str]) -> int:
    """Run the command that the words name, and return its exit code."""
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in _HELP:
        return _print_help(HELP, GROUPS)
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version  # 10 ms, for this command only

        print(f"mlxhog {version('mlxhog')}")
        return 0
    if words[0] not in COMMANDS:
        known = [*COMMANDS, "--help", "--version"]
        ours = ELSEWHERE.get(words[0].lower())
        hint = f"; did you mean {ours!r}?" if ours else did_you_mean(words[0], known)
        hint = hint or "; mlxhog help lists them"
        print(f"no command {words[0]!r}{hint}", file=sys.stderr)
        return 2
    if words[0] == "mad":
        from mlxhog.cli import mad

        if not words[1:] or words[1] in _HELP:
            group = {name: what for name, (_, what) in mad.COMMANDS.items()}
            return _print_help(mad.HELP, {"commands": group})
        if words[1] not in mad.COMMANDS:
            hint = did_you_mean(words[1], mad.COMMANDS)
            print(f"no command 'mad {words[1]}'{hint}", file=sys.stderr)
            return 2
    return _run(words)


_HELP = ("-h", "--help", "help")


def _print_help(text: str, groups: Mapping[str, Mapping[str, str]]) -> int:
    width = max(len(name) for group in groups.values() for name in group)
    listed = (
        "\n".join([f"{title}:", *(f"  {name:{width}}  {what}" for name, what in group.items())])
        for title, group in groups.items()
    )
    print(text.format(commands="\n\n".join(listed)))
    return 0


def find(words: Sequence[str]) -> "tuple[Command, Sequence[str]]":
    """Return the command that begins some words, and the words after it.

    Args:
        words: such as "runs", "rm", "latest"; the first is one of `COMMANDS`, one after "mad" of
            `mlxhog.cli.mad.COMMANDS`.
    """
    name, length = " ".join(words[:2]), 2
    if words[0] == "mad":
        from mlxhog.cli.mad import COMMANDS as MAD

        place = f"mad.{MAD[words[1]][0]}"
    elif name in PLACES:
        place = PLACES[name]
    else:
        place, length = PLACES.get(words[0], f"{words[0]}.run"), 1
    module, _, function = place.rpartition(".")
    found: Command = getattr(importlib.import_module(f"mlxhog.cli.{module}"), function)
    return found, words[length:]


def _run(words: list[str]) -> int:
    """Run a command; turn its errors into messages and exit codes."""
    # Torch reads it at its import. A pool that spins between its jobs takes the cores from native
    # operators: beside other programs, prompts take ten times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _folder_is_gone():
        return 2
    try:
        command, arguments = find(words)
        return command(arguments)
    except MlxhogError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except MemoryError as error:
        message, code = f"the memory is used up: {error}; ask for smaller sizes", LACKS
    except ImportError as error:
        if (lack := _lacks(words[0], error)) is None:
            raise
        message, code = lack, LACKS
    except OSError as error:
        if error.errno == errno.ENOENT and _folder_is_gone():
            return 2
        if (fault := _of_system(error)) is None:
            raise
        message, code = fault
    print(message, file=sys.stderr)
    return code


def _lacks(command: str, error: ImportError) -> str | None:
    """Return the message about a package; None if the fault is inside of one."""
    if isinstance(error, ModuleNotFoundError):
        if error.name not in PACKAGES:  # a damaged package, or one that another package lacks
            return None
        return (
            f"mlxhog {command} needs {error.name}, which is not installed; install it: "
            f"python -m pip install {PACKAGES[error.name]}"
        )
    if not (error.path or "").endswith((".so", ".dylib")):
        return None
    return (
        f"mlxhog {command}: a package cannot be loaded: {message_of(error)}; if memory is "
        "short, end other programs or raise the limit (ulimit -v), else install it again"
    )


def _of_system(error: OSError) -> tuple[str, int] | None:
    """Return the message and the exit code of an error of the system; None if it is a fault."""
    name = None if error.filename is None else str(error.filename)
    if error.errno == errno.ENAMETOOLONG and name is not None:
        longest = max(map(len, name.split("/")))
        return (
            f"the path {name[:40]}... has a name of {longest} characters, more than the disk "
            "allows; choose a shorter one"
        ), 2
    if error.errno in (errno.EACCES, errno.EPERM) and name is not None:
        return (
            f"no permission for {name!r} ({error.strerror}); make it and the folders above it "
            "accessible to you, or name another path"
        ), 2
    if error.errno in (errno.EMFILE, errno.ENFILE):
        from mlxhog.base.processes import descriptors_text

        return f"no more files can be opened: {descriptors_text()}", LACKS
    if error.errno in (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS):
        from mlxhog.base.durable import explained

        return f"a file cannot be written: {explained(error)}", LACKS
    return None


def _folder_is_gone() -> bool:
    """Whether the current folder no longer exists; reports it."""
    try:
        os.getcwd()
    except OSError as error:
        print(
            f"the current folder cannot be used ({error.strerror}); was it deleted or moved? "
            "change to another one: cd ~",
            file=sys.stderr,
        )
        return True
    return False
