"""The frame of a command: it reads the words, calls the function, and prints what that reports.

A command is a function from its options to a `Report`, and its docstring is its help:

    @command("doctor")
    def run(config: _DoctorConfig) -> Report: ...

The report has facts: `--json` prints them, the frame makes the text for people from them, and
`--quiet` prints neither. A command that prints by itself, such as a server, returns its exit code.
"""

import inspect
import json as plain
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from mlxhog.base.interrupts import Interrupts
from mlxhog.base.output import OutputLost, may_redraw
from mlxhog.base.paths import expanded, path_from_here
from mlxhog.base.quantities import format_bytes, format_duration, format_number
from mlxhog.cli.flags import Flags, OptionGroup, RunsDirectory
from mlxhog.config.options import options
from mlxhog.display.streams import WIDTH, in_columns
from mlxhog.display.table import Section, exported, lines, show
from mlxhog.display.views import StatusLine
from mlxhog.errors import ConfigError

INTERRUPTED = 130
EXIT_CODES = {"done": 0, "unsaved": 3, "diverged": 4, "interrupted": INTERRUPTED}
"""By the status of a training."""

Tick = Callable[[Callable[[], str]], None]
"""Shows a text if it is time to; called often. It raises KeyboardInterrupt after a signal."""


@dataclass(frozen=True)
class Report:
    """The result of a command: facts, which `--json` prints, and people read as `spelt` has them.

    `text` is for people, if it differs from the facts: a text, or its parts, which are lines and
    facts, or sections and lines. Parts may be made when they are printed.
    """

    facts: Any  # a mapping, or a list of them
    text: Iterable[Any] | None = None
    code: int = 0  # exit code
    remarks: Sequence[str] = ()  # lines for stderr, also with `--json` and `--quiet`
    one_per_line: bool = False  # the facts are a list, of which each entry gets a line of JSON

    def print(self, *, json: bool, quiet: bool = False) -> None:
        """Print facts or text, and the remarks."""
        if json:
            for facts in self.facts if self.one_per_line else [self.facts]:
                print_json(facts)
        elif not quiet:
            self._show()
            sys.stdout.flush()
        for line in self.remarks:
            print(line, file=sys.stderr)

    def _show(self) -> None:
        """Print the text for people, with colors on a terminal that has them."""
        text = [self.facts] if self.text is None else self.text
        parts = [text] if isinstance(text, str) else [*text]
        if any(isinstance(part, Section) for part in parts):
            every = [Section("", notes=[part]) if isinstance(part, str) else part for part in parts]
            show(every, sys.stdout, plain=not may_redraw(sys.stdout))
            return
        for part in parts:
            for line in [part] if isinstance(part, str) else spelt(part):
                print(line)


Function = Callable[..., Report | int]


@dataclass(frozen=True)
class Command:
    """A command of the command line."""

    name: str  # its words
    function: Function  # from its options to a `Report` or an exit code
    parts: Mapping[str, OptionGroup]  # of parameters that take some options only, or a `Layer`
    otherwise: str  # advice for an unknown flag without a similar known one
    writes: bool  # files, or to other processes; else its output is all that it does

    def flags(self) -> Flags:
        """Return its options, by the parameters of the function."""
        hints = get_type_hints(self.function)
        names = inspect.signature(self.function).parameters
        parts = [self.parts.get(name) or OptionGroup(hints[name]) for name in names]
        return Flags(self.name, inspect.getdoc(self.function) or "", parts, self.otherwise)

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run the command with the words after its name; returns its exit code."""
        configs = self.flags().parse(arguments)
        result = self.function(*configs)
        if not isinstance(result, Report):
            return result
        asked = {name for one in configs for name in ("json", "quiet") if getattr(one, name, False)}
        with suppress(OutputLost):  # the exit code stays
            result.print(json="json" in asked, quiet="quiet" in asked)
        return result.code


def command(
    name: str, otherwise: str = "", *, writes: bool = False, **parts: OptionGroup
) -> Callable[[Function], Command]:
    """Make a command of a function; the arguments are those of `Command`."""
    return lambda function: Command(name, function, parts, otherwise, writes)


def print_json(value: object) -> None:
    """Print a value that may hold NumPy scalars and paths, as one line of JSON."""
    try:
        text = plain.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        from mlxhog.base import plain_json  # it imports NumPy

        text = plain_json.dumps(value).decode()
    print(text, flush=True)


def spelt(facts: Any) -> Iterator[str]:
    """Yield facts as lines for people: a row each, and a table for a list of mappings.

    Facts without a value are left out; the name of a number says its unit, as in `step_s`.
    """
    columns = shutil.get_terminal_size((WIDTH, 0)).columns
    if not isinstance(facts, Mapping):
        yield from lines(table("", facts), columns)
        return
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        is_list = isinstance(value, list | tuple) and value
        if is_list and all(isinstance(one, Mapping) and one for one in value):
            yield from spelt(value)
        elif value not in (None, "", [], (), {}):
            texts = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, Mapping):
                texts = [f"{key} {spelt_value(key, one)}" for key, one in value.items()]
            title = f"{name.replace('_', ' '):{width}}  "
            yield from in_columns(title, [spelt_value(name, one) for one in texts], columns)


def table(title: str, rows: Iterable[Mapping[str, Any]], notes: Sequence[str] = ()) -> Section:
    """Return facts as a table with a heading; the names of the first row are its columns."""
    rows = list(rows)
    header = [name.replace("_", " ") for name in rows[0]] if rows else []
    return Section(
        title, header, [[spelt_value(*one) for one in row.items()] for row in rows], notes
    )


def tabular(facts: Any, part: Section, kind: str, *, one_per_line: bool = False) -> Report:
    """Return the report of a table in one of `FORMATS`."""
    if kind == "text":
        return Report(facts, [part], one_per_line=one_per_line)
    text = exported(part, kind)
    return Report(facts, [text] if text else (), remarks=part.notes, one_per_line=one_per_line)


def spelt_value(name: str, value: Any) -> str:
    """Return a fact as people write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {spelt_value(str(key), one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(spelt_value(name, one) for one in value)
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


def written(config: object, leave_out: Collection[str] = ()) -> str:
    """Return the words of a command line that set the options as they are."""
    words = list[str]()
    for name, spec in options(type(config)).items():
        value = getattr(config, name)
        if name in leave_out or (value == spec.default and not spec.argument):
            continue
        for text in value if spec.many else [str(spec.to_yaml_value(value))]:
            quoted = shlex.quote(text)
            words += [quoted] if spec.argument else spec.argv([quoted])
    return " ".join(words)


def run_word(directory: Path) -> str:
    """Return the shortest name of a run for every command, without `--runs-dir`; not quoted.

    It is the run's name if that is in the default folder of runs, else its path.
    """
    if directory.parent == Path(RunsDirectory().runs_dir).absolute():
        return directory.name
    return str(path_from_here(directory))
