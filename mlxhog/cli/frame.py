"""The frame of a command: it reads the words, calls the function, and prints what that reports.

A command is a function from its options to a `Report`:

    @command("doctor", ABOUT, EXAMPLES, DoctorConfig)
    def run(config: DoctorConfig) -> Report: ...

The report has facts, which `--json` prints, and a text made from them; `--quiet` prints neither.
A command that prints by itself, such as a server, returns its exit code.
"""

import json as plain
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import expanded, path_from_here
from mlxhog.cli.flags import Flags, Part, RunFolder
from mlxhog.config.options import options
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.report.table import Section


@dataclass(frozen=True)
class Report:
    """The result of a command.

    Attributes:
        facts: for `--json`.
        text: makes the text for people: lines, or sections. "" prints nothing.
        code: exit code.
        remarks: lines for stderr, also with `--json` and `--quiet`.
        one_per_line: the facts are a list, of which each entry gets a line.
    """

    facts: Any
    text: "Callable[[], str | Iterable[str | Section]]"
    code: int = 0
    remarks: Sequence[str] = ()
    one_per_line: bool = False


class Command:
    """A command of the command line.

    Args:
        flags: makes its parser.
        function: called with the options of each part.
    """

    def __init__(self, flags: Callable[[], Flags], function: Callable[..., Any]) -> None:
        self.flags, self._function = flags, function

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run the command with the words after its name; returns its exit code."""
        configs = self.flags().parse(arguments)
        result = self._function(*configs)
        if not isinstance(result, Report):
            return int(result)
        if any(getattr(one, "json", False) for one in configs):
            for facts in result.facts if result.one_per_line else [result.facts]:
                print_json(facts)
        elif not any(getattr(one, "quiet", False) for one in configs):
            print_text(result.text())
        for line in result.remarks:
            print(line, file=sys.stderr)
        return result.code


def command(
    name: str,
    about: str,
    examples: Sequence[str],
    *parts: type[Any] | Part | Callable[[], Part],
    main: Sequence[str] = (),
    otherwise: str = "",
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function.

    Args:
        name: its words.
        about: one or two sentences.
        examples: command lines.
        parts: dataclasses of its options, and parts of others; the function gets one of each.
        main: names of the flags that `--help` shows.
        otherwise: advice for an unknown flag without a similar known one.
    """

    def flags() -> Flags:
        made = [
            one if isinstance(one, Part) else Part(one) if isinstance(one, type) else one()
            for one in parts
        ]
        return Flags(name, about, examples, made, main, otherwise)

    return lambda function: Command(flags, function)


def print_json(value: object) -> None:
    """Print a value that may hold NumPy scalars and paths, as one line of JSON."""
    try:
        text = plain.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        from mlxhog.base import plain_json  # it imports NumPy

        text = plain_json.dumps(value).decode()
    print(text, flush=True)


def print_text(parts: "str | Iterable[str | Section]") -> None:
    """Print lines, or tables and notes, with colors on a terminal that has them."""
    if not isinstance(parts, str):
        from mlxhog.report.table import Section, show
        from mlxhog.report.views import may_redraw

        every = [Section("", notes=[one]) if isinstance(one, str) else one for one in parts]
        show(every, sys.stdout, plain=not may_redraw(sys.stdout))
    elif parts:
        print(parts)


def titled(rows: Mapping[str, object], width: int = 12) -> str:
    """Return a line for each title with a text; it begins in this column."""
    return "\n".join(f"{title:{width}}{text}" for title, text in rows.items() if text)


def writable(flag: str, text: str) -> Path:
    """Return the path of a file to write, before the work for it.

    Raises:
        ConfigError: it is a folder, or in none that can be written.
    """
    path = expanded(text)
    if path.is_dir() or not path.name or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {text}: name a file in a directory that can be written")
    return path


def written(config: object, leave_out: Collection[str] = ()) -> str:
    """Return the words of a command line that set the options as they are."""
    words = list[str]()
    for name, spec in options(type(config)).items():
        value = getattr(config, name)
        if name in leave_out or (value == spec.default and not spec.argument):
            continue
        texts = value if spec.many else [str(spec.spell(value))]
        flag = [] if spec.argument else [spec.flag]
        for text in texts:
            words += flag if spec.switch else [*flag, shlex.quote(text)]
    return " ".join(words)


def run_word(directory: Path) -> str:
    """Return the shortest name of a run for every command, without `--out`; not quoted.

    It is the run's name if that is in the default folder of runs, else its path.
    """
    if directory.parent == Path(RunFolder().out).absolute():
        return directory.name
    return str(path_from_here(directory))


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, so that its cleanup runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def told(*, quiet: bool) -> Iterator[Any]:
    """Show the parts of a command's work on stderr, and end it cleanly by SIGTERM."""
    from mlxhog.report.views import PartLine

    with ended_by_signal(), PartLine(sys.stderr, quiet=quiet) as tell:
        yield tell
