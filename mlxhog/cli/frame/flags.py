"""The options of a command: `Flags` reads its command line and prints its help.

`config.sources` reads what the values mean.
"""

import shutil
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import quoted
from mlxhog.base.quantities import Interval
from mlxhog.config import plugins
from mlxhog.config.components import RUN_REGISTRIES, ComponentRegistry
from mlxhog.config.options import RESEARCH, Option, argument, option, options, to_flag
from mlxhog.config.sources import ConfigSource, added, resolve, suggestion
from mlxhog.display.streams import WIDTH
from mlxhog.display.table import FORMATS
from mlxhog.display.views import StatusLine
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run

MAX_CHOICES = 6  # they fit beside the flag
COLUMN = 24  # where the text beside a flag begins


@dataclass(frozen=True, kw_only=True)
class Json:
    """The option of every command."""

    json: bool = option(False, "JSON in place of text")


@dataclass(frozen=True, kw_only=True)
class Tabular(Json):
    """Options of a command that prints a table."""

    format: str = option("text", "of the table; its notes go to stderr", choices=FORMATS)


@dataclass(frozen=True, kw_only=True)
class Quiet(Json):
    """Options of a command that reports its work."""

    quiet: bool = option(False, "suppress progress output; errors and the JSON of --json stay")

    def status(self) -> StatusLine:
        """Return the line of the terminal that shows the work."""
        return StatusLine(sys.stderr, quiet=self.quiet)


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """The option with files of the user's own, loaded while the command line is read."""

    plugin: tuple[str, ...] = option(
        (),
        "a Python file that adds layers, tasks, schedules, optimizers or strategies, such as "
        "examples/my_layer.py",
        many=True, metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Download:
    """The option of commands that may download a model."""

    yes: bool = option(False, "download more than 1 GB from the Hugging Face hub without asking")


@dataclass(frozen=True, kw_only=True)
class RunsDirectory:
    """The option of commands on runs."""

    runs_dir: str = option("runs", "folder that holds the runs", is_path=True)

    def find(self, name: str) -> "Run":
        """Return a run by its path, its name or a part of it, or `latest`; else a RunError."""
        from mlxhog.checkpoint.run import find

        return find(name, Path(self.runs_dir))


def run_argument(usage: str = "RUN", default: object = None) -> Any:  # a dataclass field
    """Declare the argument that names a run, or several."""
    about = "a path, a run's name or a part of it, or latest; RUN/best, RUN/latest: its checkpoints"
    return argument(usage, about, default)


def model_argument(usage: str = "RUN_OR_CHECKPOINT") -> Any:  # a dataclass field
    """Declare the argument that names a model: a run, a checkpoint, or one on the hub."""
    return argument(
        usage,
        "a run's name or a part of it, latest, RUN/best, a path, or a model on the Hugging Face "
        "hub: hf:OWNER/NAME[/SUBFOLDER][@REVISION]",
    )


@dataclass(frozen=True, kw_only=True)
class OneRun(RunsDirectory, Json):
    """Options of a command on one run."""

    run: str = run_argument()


@dataclass(frozen=True)
class OptionGroup:
    """Options of a command."""

    cls: type[Any]  # a dataclass of `option` fields
    only: str | Callable[[], Iterable[str]] = ""  # their flat names; "" for all
    group: str | None = None  # heading for all of them; None for those that they name
    default: str = ""  # shown in place of each default
    merged: bool = False  # the command merges them with other sources: it gets a `ConfigSource`


class Flags:
    """The options of one command, and the reader of its command line.

    Its `doc` is the text of its help. Below `Examples:` is a command line in each line, or
    indented below it what to know about it: a shell may have no comments. Below `Main options:` are
    the names of the flags that `--help` shows; `--help-all` then shows all.
    """

    def __init__(
        self, command: str, doc: str, parts: Sequence[OptionGroup], otherwise: str = ""
    ) -> None:
        self._command, self.parts, self._otherwise = command, parts, otherwise
        doc, _, main = doc.partition("\n\nMain options:\n")
        self._about, _, examples = doc.partition("\n\nExamples:\n")
        self._main, self._examples = main.split(), textwrap.dedent(examples).splitlines()
        self._declared = dict[str, tuple[Option, OptionGroup]]()  # by flag, or name of an argument
        self.by_flag = dict[str, Option]()  # aliases included
        for part in parts:
            names = part.only.split() if isinstance(part.only, str) else part.only()
            for spec in _with_hyperparameters(options(part.cls).values()):
                place = spec.argument or spec.flag
                if place not in self.by_flag and (not names or spec.name in names):
                    group = spec.group if part.group is None else part.group
                    spec = replace(spec, group=group, shown=part.default)
                    self._declared[place] = spec, part
                    self.by_flag |= dict.fromkeys(filter(None, [*spec.flags, spec.off_flag]), spec)
        self._arguments = [spec for spec in self.specs() if spec.argument]

    def specs(self) -> list[Option]:
        """Return every option and hyperparameter of the command, as its help has them."""
        return [spec for spec, _ in self._declared.values()]

    def parse(self, arguments: Sequence[str]) -> list[Any]:
        """Read a command line; return the options of each part, in the parts' order.

        Flags may be between positional arguments, but not after `--`. The files of `--plugin` are
        loaded. A merged part gets its absent flags from other sources: it is a `ConfigSource`.

        Raises:
            ConfigError: every problem of the command line.
        """
        values, unknown, problems = self._read(arguments)
        files = values.get("plugin", ([],))[0]  # of train's own option a text, loaded with it
        for file in files if isinstance(files, list) else []:
            plugins.load(file)
        known = ["--help", *["--help-all"] * bool(self._main), *self.by_flag]
        problems[:0] = [
            f"no flag {one!r}{_of_own_component(one) or suggestion(one, known) or self._otherwise}"
            for one in unknown
        ]
        layers: dict[OptionGroup, ConfigSource] = {part: {} for part in self.parts}
        for spec, part in self._declared.values():
            if spec.name in values:
                layers[part][spec.name] = value, flag = values[spec.name]
                problems += [
                    f"{flag} and {values[other][1]} are both given; keep one"
                    for other in spec.excludes
                    if other in values
                ]
        configs = list[Any]()
        for part, layer in layers.items():
            try:
                configs.append(layer if part.merged else resolve(part.cls, [layer]))
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        return configs

    def _read(self, arguments: Sequence[str]) -> tuple[ConfigSource, list[str], list[str]]:
        """Return the values of a command line, its unknown flags, and its other problems.

        Raises:
            ConfigError: an argument or a flag is missing that it must have.
        """
        values, unknown, problems = ConfigSource(), list[str](), list[str]()
        argv, places = deque(arguments), deque(self._arguments)
        is_ended = is_stray = False

        def add(spec: Option, texts: list[str], name: str) -> None:
            earlier, first = values.get(spec.name, (None, name))
            value: Any = texts if spec.many else "\n".join(texts)
            if earlier is not None and spec.many:
                value = [*earlier, *texts]  # type: ignore[misc]
            elif earlier is not None and spec.lines:
                value = f"{earlier}\n{value}"
            elif earlier is not None and spec.repeats:
                value = added(earlier, value)
            elif earlier is not None:
                problems.append(f"{first} and {name} are the same option; keep one")
            values[spec.name] = (value, name)

        while argv:
            word = argv.popleft()
            flag, equals, text = word.partition("=")
            if word[:2] in self.by_flag and word[1] != "-":  # -c FILE, -cFILE or -c=FILE
                flag, equals, text = word[:2], word[2:], word[2:].removeprefix("=")
            if is_ended or not _is_flag(word):
                if places:
                    spec = places[0] if places[0].many else places.popleft()
                    add(spec, [word], _metavar(spec))
                elif not (is_stray or unknown):  # else it may be the value of a wrong flag
                    is_stray = True
                    problems.append(f"unexpected argument {word!r}{self._place_of(word)}")
            elif word in ("-h", "--help", "--help-all") and (self._main or word != "--help-all"):
                print(self._help(everything=word == "--help-all" or not self._main))
                raise SystemExit(0)
            elif word == "--":
                is_ended = True
            elif flag not in self.by_flag:
                unknown.append(flag)
            elif (spec := self.by_flag[flag]).type is bool or (spec.on and flag != spec.flag):
                add(spec, [spec.on or str(flag != spec.off_flag).lower()], flag)
                off = f"{spec.off_flag or f'{spec.flag} {spec.none}'} switches it off"
                problems += [f"{flag} takes no value, it has {text!r}; {off}"] * bool(equals)
            elif texts := [text] if equals else self._value(self.by_flag[flag], argv):
                add(self.by_flag[flag], texts, flag)
            else:
                problems.append(f"{flag}: expected one argument: {self.by_flag[flag].help}")
        for spec in self.specs():
            is_needed = spec.required or spec.argument[:1] not in ("", "[")
            if is_needed and spec.name not in values:
                name = _metavar(spec) if spec.argument else spec.flag
                example = f"`mlxhog {self._examples[0]}`"
                raise ConfigError(f"{name} is missing: {spec.help}; as in {example}")
        return values, unknown, problems

    def _value(self, spec: Option, argv: deque[str]) -> list[str]:
        """Pop the value of a flag; several of an option with lines."""
        texts = list[str]()
        most = 1 if self._arguments or not spec.lines else len(argv)
        while argv and len(texts) < most and (spec.metavar[:1] == '"' or not _is_flag(argv[0])):
            texts.append(argv.popleft())
        return texts

    def _place_of(self, word: str) -> str:
        """Return advice for an argument that has no place."""
        if f"--{word}" in self.by_flag:
            return f"; did you mean '--{word}'?"
        if word.lower() in ("true", "false"):
            return "; a flag such as --x takes no value, and --no-x switches it off"
        if "--data" in self.by_flag and Path(word).exists():
            return f"; text is named by a flag: --data {quoted(word)}"
        return "" if self._arguments else self._otherwise

    def _help(self, *, everything: bool) -> str:
        width = max(min(shutil.get_terminal_size().columns, WIDTH) - 2, COLUMN)
        shown, groups = self.specs(), dict[str, list[tuple[str, str]]]()
        n_flags = len(shown) - len(self._arguments) + 2  # with --help and --help-all
        if everything:
            about = "the main options" if self._main else "this"
            own = [("-h, --help", f"show {about}, and stop")]
            own += [("--help-all", "show every option, and stop")] * bool(self._main)
            groups = {"positional arguments": [], "options": own}
        else:
            places = {name: place for place, name in enumerate(self._main)}
            shown = [one for one in shown if one.argument or one.name in places]
            shown.sort(key=lambda one: -1 if one.argument else places[one.name])
        for one in shown:
            title = one.group or ("positional arguments" if one.argument else "options")
            row = self._left(one), _about(one)
            groups.setdefault(title if everything else "main options", []).append(row)
        groups[RESEARCH] = groups.pop(RESEARCH, [])  # the last
        usage = ["usage: mlxhog", self._command, *(one.argument for one in self._arguments)]
        blocks = [" ".join([*usage, "[options]"])]
        for text in self._about.split("\n\n"):
            filled = textwrap.fill(text, width, break_on_hyphens=False)
            blocks.append(text if text.startswith(" ") else filled)
        for title, rows in groups.items():
            lines = (_row(left, right, width) for left, right in rows)
            blocks += ["\n".join([f"{title}:", *lines])] * bool(rows)
        if not everything:
            blocks.append(f"--help-all lists all {n_flags} options.")
        lines = (f"  {'mlxhog ' * (one[:1] != ' ')}{one}" for one in self._examples)
        blocks.append("\n".join(["examples:", *lines]))
        return "\n\n".join(blocks)

    def _left(self, spec: Option) -> str:
        value = "" if spec.type is bool else _metavar(spec)
        value += f" [{value} ...]" * (spec.lines and not self._arguments)
        _, group = self._declared[spec.argument or spec.flag]
        may_be_on = spec.default is not False or group.merged  # --no-x is read in any case
        flags = [*spec.flags, spec.off_flag * may_be_on]
        return f"{', '.join(filter(None, flags))} {value}".strip()


def _about(spec: Option) -> str:
    """The effect of an option, and the default if it shows one."""
    bare = spec.default is False or spec.argument or spec.many or spec.required
    default = spec.shown if bare or (spec.metavar and spec.default is None) else spec.default_text
    choices = choices_of(spec) if default else ()
    is_listed = bool(default) and (len(choices) > MAX_CHOICES or spec.registry is not None)
    listed = f"; one of {', '.join(choices)}" * is_listed
    return spec.help + listed + f" [{default}]" * bool(default)


def _row(left: str, right: str, width: int) -> str:
    lines = textwrap.wrap(right, max(width - COLUMN, COLUMN), break_on_hyphens=False)
    beside = f"  {left}".ljust(COLUMN)
    first = beside if beside.endswith("  ") else f"  {left}\n{' ' * COLUMN}"
    return first + f"\n{' ' * COLUMN}".join(lines)


def _is_flag(word: str) -> bool:
    """Whether a word is a flag, and not a text, a negative number or a lone dash."""
    flag = word.partition("=")[0]
    return flag[:1] == "-" and len(flag) > 1 and flag[1] not in "0123456789." and " " not in flag


def _of_own_component(flag: str) -> str:
    """Say how to write a hyperparameter of the user's own component, which has no flag."""
    for kind in RUN_REGISTRIES:
        number = kind.hyperparameters().get(flag.lstrip("-").replace("-", "_"))
        if number and number.owners[0].is_own():
            return f'; write {to_flag(kind.title)} "{number.owners[0].name}({number.name}=VALUE)"'
    return ""


def _with_hyperparameters(specs: Iterable[Option]) -> Iterator[Option]:
    """Yield options, and after each component the hyperparameters of its registry as flags."""
    for spec in specs:
        yield spec
        if isinstance(kind := spec.registry, ComponentRegistry):
            for flat, number in kind.hyperparameters().items():
                about = f"{', '.join(owner.name for owner in number.owners)}: {number.help}"
                yield replace(
                    number, name=flat, group=f"hyperparameters of {kind.plural}", help=about
                )


def choices_of(spec: Option) -> Sequence[str]:
    """Return the legal values of an option, if they are few."""
    registry = spec.registry
    return list(registry.known()) if isinstance(registry, ComponentRegistry) else spec.choices


def _metavar(spec: Option) -> str:
    if spec.argument or spec.metavar:
        return spec.metavar or spec.argument.strip("[].")
    if spec.registry is not None or len(spec.choices) > MAX_CHOICES:
        return "NAME"
    if spec.repeats:
        return "NAME=VALUE"
    if spec.choices:
        return "{" + ",".join(spec.choices) + "}"
    interval = f"{(spec.unit or 'steps').upper()}|TIME|off"
    of_type = {Interval: interval, int: "N", float: "TIME" if spec.unit == "s" else "X"}
    return of_type.get(spec.type, "TEXT")
