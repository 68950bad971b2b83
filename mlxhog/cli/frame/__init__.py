"""Declare a command, read its command line, and print its result.

A command is the function `run` in the file of its name, from its options to a `CommandResult`. The
docstring of the file is its help, and the first line of it the line in `mlxhog --help`:

    @command()
    def run(config: _DoctorOptions) -> CommandResult: ...

`--json` prints the result's payload, from which the text for people is made, too; `--quiet` prints
neither. A command that prints by itself, such as a server, returns its exit code.
"""

import inspect
import json as plain
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from mlxhog.base.interrupts import Interrupts
from mlxhog.base.output import OutputLost, may_redraw
from mlxhog.base.paths import expanded, path_from_here
from mlxhog.base.quantities import format_bytes, format_duration, format_number
from mlxhog.cli.frame.flags import (
    Download,
    Flags,
    Json,
    OneRun,
    OptionGroup,
    Plugins,
    Quiet,
    RunsDirectory,
    Tabular,
    model_argument,
    run_argument,
)
from mlxhog.config.options import argument, option, options
from mlxhog.display.streams import WIDTH, in_columns
from mlxhog.display.table import Section, exported, lines, show
from mlxhog.display.views import StatusLine
from mlxhog.errors import DIVERGED, INTERRUPTED, LACKS, ConfigError

__all__ = (
    "EXIT_CODES", "Command", "CommandResult", "Download", "Flags", "Json", "OneRun", "OptionGroup",
    "Plugins", "Quiet", "RunsDirectory", "Tabular", "Tick", "argument", "command", "command_line",
    "format_value", "model_argument", "option", "run_argument", "short_name", "table", "tabular",
    "ticking", "to_lines", "writable",
)  # fmt: skip

EXIT_CODES = {"done": 0, "unsaved": LACKS, "diverged": DIVERGED, "interrupted": INTERRUPTED}
"""By the status of a training."""

Tick = Callable[[Callable[[], str]], None]
"""Shows a text if it is time to; called often. It raises KeyboardInterrupt after a signal."""


@dataclass(frozen=True)
class CommandResult:
    """What a command found, as JSON and as text.

    Attributes:
        payload: what `--json` prints: a mapping, or a list of mappings.
        text: for people, where it is not `to_lines(payload)`: a text, or lines, mappings and
            sections, which may be made while they are printed.
        code: the exit code.
        messages: lines for stderr, also with `--json` and `--quiet`.
        one_per_line: whether each entry of the payload, a list, is a line of JSON.
    """

    payload: Any
    text: Iterable[Any] | None = None
    code: int = 0
    messages: Sequence[str] = ()
    one_per_line: bool = False

    def print(self, *, json: bool, quiet: bool = False) -> None:
        """Print the payload or the text, and the messages."""
        if json:
            for payload in self.payload if self.one_per_line else [self.payload]:
                print_json(payload)
        elif not quiet:
            self._show()
            sys.stdout.flush()
        for line in self.messages:
            print(line, file=sys.stderr)

    def _show(self) -> None:
        """Print the text for people, with colors on a terminal that has them."""
        text = [self.payload] if self.text is None else self.text
        parts = [text] if isinstance(text, str) else [*text]
        if any(isinstance(part, Section) for part in parts):
            every = [Section("", notes=[part]) if isinstance(part, str) else part for part in parts]
            show(every, sys.stdout, plain=not may_redraw(sys.stdout))
            return
        for part in parts:
            for line in [part] if isinstance(part, str) else to_lines(part):
                print(line)


Function = Callable[..., CommandResult | int]


@dataclass(frozen=True)
class Command:
    """A command of the command line."""

    name: str  # such as "mad search"
    function: Function
    groups: Mapping[str, OptionGroup]  # of parameters with some options only, or a `ConfigSource`
    otherwise: str  # advice for an unknown flag without a similar known one
    writes: bool  # files, or to other processes; else its output is all that it does

    def flags(self) -> Flags:
        """Return its options, by the parameters of the function."""
        function, hints = self.function, get_type_hints(self.function)
        names = inspect.signature(function).parameters
        groups = [self.groups.get(name) or OptionGroup(hints[name]) for name in names]
        about = inspect.getdoc(function) or sys.modules[function.__module__].__doc__ or ""
        return Flags(self.name, about, groups, self.otherwise)

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run the command with the arguments after its name; return its exit code."""
        configs = self.flags().parse(arguments)
        names = ("json", "quiet", "yes")
        asked = {name for one in configs for name in names if getattr(one, name, False)}
        with _consent(asked):
            result = self.function(*configs)
        if not isinstance(result, CommandResult):
            return result
        with suppress(OutputLost):  # the exit code stays
            result.print(json="json" in asked, quiet="quiet" in asked)
        return result.code


def command(
    otherwise: str = "", *, writes: bool = False, **groups: OptionGroup
) -> Callable[[Function], Command]:
    """Make a command of the function `run` of its file, or of one with the name of an action.

    The arguments are those of `Command`.
    """

    def declare(function: Function) -> Command:
        name = function.__module__.removeprefix("mlxhog.cli.").replace(".", " ")
        name += f" {function.__name__}" * (function.__name__ != "run")
        return Command(name, function, groups, otherwise, writes)

    return declare


def _consent(asked: Collection[str]) -> AbstractContextManager[None]:
    if not {"quiet", "yes"} & {*asked}:
        return nullcontext()
    from mlxhog.checkpoint import hub  # it imports NumPy

    return hub.consent(yes="yes" in asked, quiet="quiet" in asked)


def print_json(value: object) -> None:
    """Print a value that may hold NumPy scalars and paths, as one line of JSON."""
    try:
        text = plain.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        from mlxhog.base import plain_json  # it imports NumPy

        text = plain_json.dumps(value).decode()
    print(text, flush=True)


def to_lines(payload: Any) -> Iterator[str]:
    """Yield a payload as lines for people: a row per field, and a table for a list of mappings.

    Fields without a value are left out; the name of a number says its unit, as in `step_s`.
    """
    columns = shutil.get_terminal_size((WIDTH, 0)).columns
    if not isinstance(payload, Mapping):
        yield from lines(table("", payload), columns)
        return
    width = max(map(len, payload), default=0)
    for name, value in payload.items():
        is_list = isinstance(value, list | tuple) and value
        if is_list and all(isinstance(one, Mapping) and one for one in value):
            yield from to_lines(value)
        elif value not in (None, "", [], (), {}):
            texts = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, Mapping):
                texts = [f"{key} {format_value(key, one)}" for key, one in value.items()]
            title = f"{name.replace('_', ' '):{width}}  "
            yield from in_columns(title, [format_value(name, one) for one in texts], columns)


def table(title: str, rows: Iterable[Mapping[str, Any]], notes: Sequence[str] = ()) -> Section:
    """Return rows as a table with a heading; the names of the first row are its columns."""
    rows = list(rows)
    header = [name.replace("_", " ") for name in rows[0]] if rows else []
    return Section(
        title, header, [[format_value(*one) for one in row.items()] for row in rows], notes
    )


def tabular(payload: Any, part: Section, kind: str, *, one_per_line: bool = False) -> CommandResult:
    """Return the result of a command that prints a table in one of `FORMATS`."""
    if kind == "text":
        return CommandResult(payload, [part], one_per_line=one_per_line)
    text = exported(part, kind)
    return CommandResult(
        payload, [text] if text else (), messages=part.notes, one_per_line=one_per_line
    )


def format_value(name: str, value: Any) -> str:
    """Return the value of a field as people write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(str(key), one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(name, one) for one in value)
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if not isinstance(value, int | float) or name in ("seed", "seeds"):
        return str(value)
    if name == "seconds" or name.endswith("_s") and not name.endswith("per_s"):
        return format_duration(value)
    return format_bytes(value) if name.endswith("bytes") else format_number(value)


@contextmanager
def ticking(line: StatusLine) -> Iterator[Tick]:
    """Count signals in the block, and redraw a line, or in a pipe write one now and then."""
    answered = 0

    def tick(text: Callable[[], str]) -> None:
        nonlocal answered
        if signals.count > answered:
            answered = signals.count
            raise KeyboardInterrupt
        line.tick(text)

    with Interrupts() as signals, line:
        yield tick


def writable(flag: str, text: str) -> Path:
    """Return the path of a file to write, before the work for it; else a ConfigError."""
    path = expanded(text)
    if path.is_dir() or not path.name or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {text}: name a file in a directory that can be written")
    return path


def command_line(config: object, leave_out: Collection[str] = ()) -> str:
    """Return the arguments that set options as they are, quoted for a shell."""
    argv = list[str]()
    for name, spec in options(type(config)).items():
        value = getattr(config, name)
        if name in leave_out or (value == spec.default and not spec.argument):
            continue
        for text in value if spec.many else [str(spec.to_yaml_value(value))]:
            quoted = shlex.quote(text)
            argv += [quoted] if spec.argument else spec.argv([quoted])
    return " ".join(argv)


def short_name(directory: Path) -> str:
    """Return the shortest name of a run for every command, without `--runs-dir`; not quoted.

    It is the run's name if that is in the default folder of runs, else its path.
    """
    if directory.parent == Path(RunsDirectory().runs_dir).absolute():
        return directory.name
    return str(path_from_here(directory))
