"""Flags from option dataclasses: argparse finds the words, `config.sources` their meaning."""

import argparse
import importlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mlxhog.base.quantities import Interval
from mlxhog.config import plugins
from mlxhog.config.choices import KINDS, Choice, Kind
from mlxhog.config.options import Option, option, options, to_flag
from mlxhog.config.sources import Layer, resolve, suggestion
from mlxhog.errors import ConfigError

C = TypeVar("C")

RUN_HELP = "a path, a run's name or a part of it, or latest"
"""Help of an argument that names a run."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The option of commands on runs."""

    out: str = option("runs", "folder that holds the runs")


LIST = "-\0"
"""Makes `Flags.parse` raise `Listed`; no word of a command line has a zero in it."""


@dataclass(frozen=True)
class Word:
    """An argument of a command.

    Attributes:
        flags: its spellings; () for a positional argument.
        name: of its value.
        help: its description.
        takes_value: whether a value follows.
        values: legal ones, if they are few.
    """

    flags: Sequence[str]
    name: str
    help: str
    takes_value: bool
    values: Sequence[str]


class Listed(Exception):
    """The answer to `LIST`.

    Attributes:
        flags: of the command, complete.
    """

    def __init__(self, flags: "Flags") -> None:
        super().__init__()
        self.flags = flags


def flags_of(*words: str) -> "Flags | None":
    """Return the flags of a command, complete; None if it has none of its own.

    Args:
        words: of the command, such as "mad", "search", or "runs", "rm".
    """
    from mlxhog.cli import FUNCTIONS

    package, functions = "mlxhog.cli", FUNCTIONS
    if words[0] == "mad":
        from mlxhog.cli.mad import COMMANDS

        package, functions = (
            "mlxhog.cli.mad",
            {name: place for name, (place, _) in COMMANDS.items()},
        )
        words = words[1:]
    module, _, function = functions.get(words[0], f"{words[0]}.run").partition(".")
    try:
        getattr(importlib.import_module(f"{package}.{module}"), function)([*words[1:], LIST])
    except Listed as listed:
        return listed.flags
    return None


@dataclass(frozen=True)
class Parsed:
    """A command line: values of options, other arguments, and problems."""

    values: Layer
    other: argparse.Namespace
    problems: list[str]

    def split(self, cls: type[C]) -> tuple[C, Layer]:
        """Return the options of a dataclass, and the values of all other options.

        Raises:
            ConfigError: every problem of them, and of the command line.
        """
        own = {name: value for name, value in self.values.items() if name in options(cls)}
        others = {name: value for name, value in self.values.items() if name not in own}
        return resolve(cls, [own], self.problems), others


class Flags:
    """The parser of one command.

    Args:
        command: its name.
        about: one or two sentences.
        examples: command lines.
        arguments: names of the positional arguments, for the usage line.
        main: names of the flags that `--help` shows; `--help-all` then shows all. All by default.

    Attributes:
        declared: every option by its flag, with the choices whose number it is, and the text that
            is shown in place of its default.
    """

    def __init__(
        self,
        command: str,
        about: str,
        examples: Sequence[str],
        arguments: Sequence[str] = (),
        main: Sequence[str] = (),
    ) -> None:
        self._parser = _Parser(
            prog=f"mlxhog {command}",
            usage=f"mlxhog {' '.join([command, *arguments])} [options]",
            description=about,
            epilog="examples:\n" + "\n".join(f"  mlxhog {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._only_flags = not arguments
        self.declared: dict[str, tuple[Option, list[type[Choice]], str | None]] = {}
        self._known: list[str] = []
        self._otherwise = ""
        self._example = examples[0] if examples else command
        about_help = "show the main options, and stop" if main else "show this, and stop"
        self.argument("-h", "--help", action=_Help, main=main, help=about_help)
        if main:
            self.argument("--help-all", action=_Help, main=(), help="show every option, and stop")

    def argument(self, *names: str, **how: Any) -> None:  # argparse's own arguments
        """Add an argument that is not an option of a dataclass, as argparse.add_argument does."""
        self._parser.add_argument(*names, **how)
        self._known += [name for name in names if name.startswith("--")]

    def quiet(self) -> None:
        """Add `--quiet`."""
        self.argument("--quiet", action="store_true", help="only errors, and the JSON of --json")

    def plugin(self) -> None:
        """Add `--plugin`; `parse` loads the files."""
        self.argument(
            "--plugin",
            action="append",
            default=[],
            metavar="FILE",
            help="a Python file that adds layers, tasks, schedules, optimizers or strategies, such "
            "as examples/my_layer.py",
        )

    def otherwise(self, advice: str) -> None:
        """Set the advice for an unknown flag without a similar known one."""
        self._otherwise = advice

    def options(
        self,
        cls: type,
        only: Collection[str] | None = None,
        *,
        group: str | None = None,
        default: str | None = None,
    ) -> None:
        """Add a flag for every option of a dataclass, or some, under the headings it names.

        An option whose flag exists, as an argument, is left out.

        Args:
            cls: made of `option` fields.
            only: names of the options to add.
            group: heading for all of them.
            default: shown in place of each default.
        """
        groups: dict[str, argparse._ActionsContainer] = {"": self._parser}
        for spec, owners in _with_numbers(options(cls).values()):
            if spec.flag in self._known or (only is not None and spec.name not in only):
                continue
            self.declared[spec.flag] = (spec, owners, default)
            title = spec.group if group is None else group
            if title not in groups:
                groups[title] = self._parser.add_argument_group(title)
            names = [spec.flag, *map(to_flag, spec.aliases)]
            groups[title].add_argument(
                *names,
                dest=spec.name,
                action=_Record,
                # The words after a list may be the positional arguments of another command.
                nargs="?"
                if spec.type is bool
                else "+"
                if spec.lines and self._only_flags
                else None,
                const="true",  # the flag alone
                values=("true", "false") if spec.type is bool else _words(spec),
                collects="\n" * spec.lines or ", " * spec.repeats,
                default=argparse.SUPPRESS,
                metavar=_metavar(spec),
                help=_help(spec, default or spec.default_text).replace("%", "%%"),
            )
            self._known += names

    def parse(self, arguments: Sequence[str]) -> Parsed:
        """Read a command line; absent flags have no value.

        Flags may be between positional arguments, but not after `--`.

        Raises:
            ConfigError: the value of a flag or a positional argument is missing, or a plugin cannot
                be loaded.
            Listed: the command line is `LIST`.
        """
        if list(arguments) == [LIST]:
            raise Listed(self)
        read = self._parser.parse_known_intermixed_args
        if "--" in arguments:  # for the intermixed form an argument
            read = self._parser.parse_known_args
        try:
            other, extra = read(arguments, argparse.Namespace(values={}))
        except ConfigError as error:
            raise ConfigError(self._explained(str(error))) from None
        for file in getattr(other, "plugin", ()):
            plugins.load(file)
        return Parsed(other.values, other, [*self._unknown(extra), *self._repeated(arguments)])

    def read(self, cls: type[C], arguments: Sequence[str]) -> tuple[Parsed, C]:
        """Add the options of a dataclass, read a command line, and return both results.

        Raises:
            ConfigError: every problem of it.
        """
        self.options(cls)
        parsed = self.parse(arguments)
        return parsed, resolve(cls, [parsed.values], parsed.problems)

    def words(self) -> Iterator["Word"]:
        """Yield every argument of the command."""
        for action in self._parser._actions:
            yield Word(
                flags=action.option_strings,
                name=str(action.metavar or action.dest),
                help=str(action.help),
                takes_value=action.nargs != 0,
                values=action.values if isinstance(action, _Record) else list(action.choices or ()),
            )

    def _explained(self, message: str) -> str:
        """Return a message of argparse, with the help of its argument."""
        required = "the following arguments are required: "
        names = message.removeprefix(required).removeprefix("argument ").partition(": ")[0]
        about = {
            "/".join(action.option_strings) or str(action.metavar or action.dest): action.help
            for action in self._parser._actions
        }
        what = (about.get(names.partition(", ")[0]) or "see above").replace("%%", "%")
        what = "" if what == "see above" else f": {what}"
        if message.startswith(required):
            return f"{names} is missing{what}; as in `mlxhog {self._example}`"
        return f"{message}{what}" if message.endswith("expected one argument") else message

    def _unknown(self, extra: Sequence[str]) -> Iterable[str]:
        after_unknown = False
        for word, after in zip(extra, [*extra[1:], ""], strict=False):
            if word.startswith("-") and word != "-":
                flag, equals, value = word.partition("=")
                hint = self._inside(flag, value if equals else after)
                hint = hint or suggestion(flag, self._known) or self._otherwise
                yield f"no flag {flag!r}{hint}"
                after_unknown = not equals
                continue
            is_flag = f"--{word}" in self._known
            if is_flag:
                yield f"unexpected argument {word!r}; did you mean '--{word}'?"
            elif not after_unknown:  # the value of an unknown flag is not a second problem
                names_text = "--data" in self._known and Path(word).exists()
                hint = f"; text is named by a flag: --data {word}" if names_text else ""
                yield f"unexpected argument {word!r}{hint}"
            after_unknown = is_flag

    def _repeated(self, arguments: Sequence[str]) -> Iterator[str]:
        """Say which flags stand twice, except those that collect values."""
        actions = self._parser._option_string_actions
        first: dict[str, str] = {}
        for word, after in zip(arguments, [*arguments[1:], "--"], strict=False):
            if word == "--":
                return
            flag, equals, _ = word.partition("=")
            action = actions.get(flag)
            if action is None or isinstance(action, argparse._AppendAction):
                continue
            if isinstance(action, _Record) and action.collects:
                continue
            has_value = not equals and action.nargs != 0 and not after.startswith("--")
            written = f"{word} {after}" if has_value else word
            if action.dest in first:
                yield f"{first[action.dest]} and {written} are the same option; keep one"
            first.setdefault(action.dest, written)

    def _inside(self, flag: str, value: str) -> str:
        """Say how a number of a choice of the user's own is written; it has no flag."""
        for kind in (kind for kind in KINDS if to_flag(kind.title) in self._known):
            for name, (_, (owner, *_)) in kind.numbers().items():
                if to_flag(name) == flag and not owner.__module__.startswith("mlxhog."):
                    return f'; write {to_flag(kind.title)} "{owner.name}({name}={value})"'
        return ""


def _with_numbers(specs: Iterable[Option]) -> Iterator[tuple[Option, list[type[Choice]]]]:
    """Yield options, and after each choice all numbers of its kind as flags, with their choices."""
    for spec in specs:
        yield spec, []
        if isinstance(kind := spec.kind, Kind):
            for flat, (number, owners) in kind.numbers().items():
                of = ", ".join(owner.name for owner in owners)
                group = f"numbers of {kind.plural}"
                yield replace(number, name=flat, group=group, help=f"{of}: {number.help}"), owners


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _Help(argparse.Action):
    """Show the help of all flags, or of the main ones, and end."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, main: Sequence[str], help: str
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, 0, default=argparse.SUPPRESS, help=help)
        self._main = main

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(self._some(parser) if self._main else parser.format_help(), end="")
        parser.exit()

    def _some(self, parser: argparse.ArgumentParser) -> str:
        """Return the help of the main flags without groups, in their order."""
        of = {action.dest: action for action in parser._actions}
        positional = [action for action in parser._actions if not action.option_strings]
        formatter = parser.formatter_class(prog=parser.prog)
        formatter.add_usage(parser.usage, (), ())
        formatter.add_text(parser.description)
        formatter.start_section("main options")
        formatter.add_arguments([*positional, *(of[name] for name in self._main)])
        formatter.end_section()
        n_flags = sum(bool(action.option_strings) for action in parser._actions)
        formatter.add_text(f"--help-all lists all {n_flags} options.")
        formatter.add_text(parser.epilog)
        return formatter.format_help()


class _Record(argparse.Action):
    """Keep the value with the flag as written.

    Attributes:
        values: legal words, if they are few.
        collects: joins the values of a flag that may stand several times; else "".
    """

    def __init__(self, *args: Any, values: Sequence[str], collects: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values, self.collects = values, collects

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        value = "\n".join(values) if isinstance(values, list) else values
        if self.collects and self.dest in namespace.values:
            earlier = namespace.values[self.dest][0]
            keeps = self.collects == "\n" or "none" not in (earlier, value)
            value = f"{earlier}{self.collects}{value}" if keeps else value
        namespace.values[self.dest] = (value, option_string or to_flag(self.dest))


MOST_CHOICES = 6  # they fit beside the flag


def _help(spec: Option, default: str) -> str:
    words = ""
    if len(_words(spec)) > MOST_CHOICES or spec.kind is not None:
        words = f"; one of {', '.join(_words(spec))}"
    return f"{spec.help}{words} [{default}]"


def _words(spec: Option) -> Sequence[str]:
    """Return the legal words of an option, if they are few."""
    return list(spec.kind.known()) if isinstance(spec.kind, Kind) else spec.choices


def _metavar(spec: Option) -> str:
    if spec.kind is not None:
        return "NAME"
    if spec.repeats:
        return "NAME=VALUE"
    if len(spec.choices) > MOST_CHOICES:
        return "NAME"
    if spec.choices:
        return "{" + ",".join(spec.choices) + "}"
    if spec.type is Interval:
        return "STEPS|TIME|off"
    if spec.type is bool:
        return "true|false"
    if spec.type is float:
        return "TIME" if spec.unit == "s" else "X"
    return "N" if spec.type is int else "TEXT"
