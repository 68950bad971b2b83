"""The frame of a command: it reads the words, calls the function, and prints what that reports.

A command is a function from its options to a `Report`:

    @command("doctor", ABOUT, EXAMPLES, DoctorConfig)
    def run(config: DoctorConfig) -> Report: ...

The report has facts: `--json` prints them, the frame makes the text for people from them, and
`--quiet` prints neither. A command that prints by itself, such as a server, returns its exit code.
"""

import json as plain
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import expanded, path_from_here
from mlxhog.base.quantities import format_bytes, format_duration, format_number
from mlxhog.cli.flags import Flags, Part, RunFolder
from mlxhog.config.options import options
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.report.table import Section


@dataclass(frozen=True)
class Report:
    """The result of a command: facts, which `--json` prints, and people read as `spelt` has them.

    Attributes:
        facts: a mapping, or a list of them.
        head: a line above the facts for people, such as the answer.
        words: the facts for people, if those differ.
        notes: lines below the facts for people, such as the next command.
        text: makes another text for people: lines, or sections.
        code: exit code.
        remarks: lines for stderr, also with `--json` and `--quiet`.
        one_per_line: the facts are a list, of which each entry gets a line of JSON.
    """

    facts: Any
    head: str = ""
    words: Any = None
    notes: Sequence[str] = ()
    text: "Callable[[], str | Iterable[str | Section]] | None" = None
    code: int = 0
    remarks: Sequence[str] = ()
    one_per_line: bool = False

    def show(self) -> None:
        """Print the text for people, with colors on a terminal that has them."""
        facts = self.facts if self.words is None else self.words
        lines = [*filter(None, [self.head]), *spelt(facts), *self.notes] if not self.text else []
        parts = self.text() if self.text else "\n".join(lines)
        if not isinstance(parts, str):
            from mlxhog.report.table import Section, show
            from mlxhog.report.views import may_redraw

            every = [Section("", notes=[one]) if isinstance(one, str) else one for one in parts]
            show(every, sys.stdout, plain=not may_redraw(sys.stdout))
        elif parts:
            print(parts)


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
            result.show()
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


# -- facts for people ------------------------------------------------------------------------------


def spelt(facts: Any) -> Iterator[str]:
    """Yield facts as lines for people: a row each, and a table for a list of mappings.

    Facts without a value are left out; the name of a number says its unit, as in `step_s`.
    """
    from mlxhog.report.streams import WIDTH, in_columns
    from mlxhog.report.table import lines

    columns = shutil.get_terminal_size((WIDTH, 0)).columns
    if not isinstance(facts, Mapping):
        yield from lines(table("", facts), columns)
        return
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            yield from spelt(value)
        elif value not in (None, "", [], (), {}):
            texts = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, Mapping):
                texts = [f"{key} {spelt_value(key, one)}" for key, one in value.items()]
            title = f"{name.replace('_', ' '):{width}}  "
            yield from in_columns(title, [spelt_value(name, one) for one in texts], columns)


def table(title: str, rows: Iterable[Mapping[str, Any]], notes: Sequence[str] = ()) -> "Section":
    """Return facts as a table with a heading; the names of the first row are its columns."""
    from mlxhog.report.table import Section

    return Section(title, *_table(list(rows)), notes)


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of facts."""
    header = [name.replace("_", " ") for name in rows[0]] if rows else []
    return header, [[spelt_value(*one) for one in row.items()] for row in rows]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def spelt_value(name: str, value: Any) -> str:
    """Return a fact as people write it."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {spelt_value(str(key), one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(spelt_value(name, one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not _is_number(value) or name in ("seed", "seeds"):
        return str(value)
    if name == "seconds" or name.endswith("_s") and not name.endswith("per_s"):
        return format_duration(value)
    return format_bytes(value) if name.endswith("bytes") else format_number(value)


# -- words of a command line -----------------------------------------------------------------------


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
        flag = [] if spec.argument else [spec.flag]
        for text in value if spec.many else [str(spec.spell(value))]:
            words += flag if spec.switch else [*flag, shlex.quote(text)]
    return " ".join(words)


def run_word(directory: Path) -> str:
    """Return the shortest name of a run for every command, without `--out`; not quoted.

    It is the run's name if that is in the default folder of runs, else its path.
    """
    if directory.parent == Path(RunFolder().out).absolute():
        return directory.name
    return str(path_from_here(directory))
