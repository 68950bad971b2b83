"""Flags from option dataclasses: argparse finds the words, `config.sources` their meaning."""

import argparse
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mlxhog.base.quantities import Interval
from mlxhog.config import plugins
from mlxhog.config.choices import KINDS, Choice, Kind
from mlxhog.config.options import Option, argument, option, options, switch, to_flag
from mlxhog.config.sources import Layer, resolve, suggestion
from mlxhog.errors import ConfigError

C = TypeVar("C")
MOST_CHOICES = 6  # they fit beside the flag


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The option of commands on runs."""

    out: str = option("runs", "folder that holds the runs")


def run_argument(usage: str = "RUN", default: object = None) -> Any:  # a dataclass field
    """Declare the word that names a run, or several."""
    return argument(usage, "a path, a run's name or a part of it, or latest", default)


def study_argument() -> Any:  # a dataclass field
    """Declare the word that names a study."""
    return argument("STUDY", "a name under studies/, or a path")


@dataclass(frozen=True, kw_only=True)
class Json:
    """The option of every command."""

    json: bool = switch("JSON in place of text")


@dataclass(frozen=True, kw_only=True)
class Quiet(Json):
    """Options of a command that reports its work."""

    quiet: bool = switch("only errors, and the JSON of --json")


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """The option with files of the user's own, loaded while the command line is read."""

    plugin: tuple[str, ...] = option(
        (),
        "a Python file that adds layers, tasks, schedules, optimizers or strategies, such as "
        "examples/my_layer.py",
        many=True,
        metavar="FILE",
    )


@dataclass(frozen=True)
class Part:
    """Options of a command.

    Attributes:
        cls: a dataclass of `option` fields.
        only: names of the options that it takes, numbers of choices by their flat names; None for
            all.
        group: heading for all of them; None for those that they name.
        default: shown in place of each default.
        merged: the command merges them with other sources, so it gets them as `Written`.
    """

    cls: type[Any]
    only: Collection[str] | None = None
    group: str | None = None
    default: str | None = None
    merged: bool = False

    def names(self) -> Collection[str]:
        """Return the names of its options; for a merged part those of `only`."""
        return options(self.cls) if self.only is None else self.only


@dataclass(frozen=True)
class Written:
    """Options of a command line that are to be merged with other sources.

    Attributes:
        values: of one part.
        problems: of the command line; for the one error that names all problems.
    """

    values: Layer
    problems: list[str] = field(default_factory=list)

    def read(self, cls: type[C]) -> C:
        """Return them as the dataclass.

        Raises:
            ConfigError: every problem of them, and of the command line.
        """
        return resolve(cls, [self.values], self.problems)


class Flags:
    """The parser of one command.

    Args:
        command: its name.
        about: one or two sentences.
        examples: command lines.
        parts: its options.
        main: names of the flags that `--help` shows; `--help-all` then shows all. All by default.
        otherwise: advice for an unknown flag without a similar known one.

    Attributes:
        declared: every option by its flag or its place in the usage line, with the choices whose
            number it is, and the text that is shown in place of its default.
    """

    def __init__(
        self,
        command: str,
        about: str,
        examples: Sequence[str],
        parts: Sequence[Part],
        main: Sequence[str] = (),
        otherwise: str = "",
    ) -> None:
        self.declared: dict[str, tuple[Option, list[type[Choice]], str | None]] = {}
        self._known = ["--help", *["--help-all"] * bool(main)]
        self.parts, self._otherwise = parts, otherwise
        self._example = examples[0] if examples else command
        words = [one.argument for p in parts for one in options(p.cls).values() if one.argument]
        self._only_flags = not words
        self._parser = _Parser(
            prog=f"mlxhog {command}",
            usage=f"mlxhog {' '.join([command, *words])} [options]",
            description=about,
            epilog="examples:\n" + "\n".join(f"  mlxhog {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        about_help = "show the main options, and stop" if main else "show this, and stop"
        self._parser.add_argument("-h", "--help", action=_Help, main=main, help=about_help)
        if main:
            every = "show every option, and stop"
            self._parser.add_argument("--help-all", action=_Help, main=(), help=every)
        self._groups: dict[str, argparse._ActionsContainer] = {"": self._parser}
        for part in parts:
            self._add(part)

    def specs(self) -> list[Option]:
        """Return every option and number of the command."""
        return [spec for spec, *_ in self.declared.values()]

    def _add(self, part: Part) -> None:
        """Add the flags of a part; an option whose flag exists is left out."""
        for spec, owners in _with_numbers(options(part.cls).values()):
            unwanted = part.only is not None and spec.name not in part.only
            if unwanted or (spec.flag in self._known and not spec.argument):
                continue
            place = spec.argument or spec.flag
            self.declared[place] = (spec, owners, part.default)
            if spec.argument.startswith("[--"):
                continue  # `parse` cuts it off
            title = spec.group if part.group is None else part.group
            if title not in self._groups:
                self._groups[title] = self._parser.add_argument_group(title)
            default = "" if part.default is None and not _shows_default(spec) else part.default
            needed: dict[str, Any] = {"required": True} if spec.required else {}
            self._groups[title].add_argument(
                *spec.flags,
                dest=spec.name,
                action=_Record,
                nargs=self._nargs(spec),
                const="true",  # the flag alone
                collects=spec.many or ("\n" * spec.lines or ", " * spec.repeats),
                default=argparse.SUPPRESS,
                metavar=_metavar(spec),
                **needed,
                help=_help(spec, default).replace("%", "%%"),
            )
            self._known += spec.flags

    def _nargs(self, spec: Option) -> str | int | None:
        if spec.argument:
            may_be_absent = spec.argument.startswith("[")
            return ("*" if may_be_absent else "+") if spec.many else "?" if may_be_absent else None
        if spec.type is bool:
            return 0 if spec.switch else "?"
        # The words after a list may be the positional arguments of another command.
        return "+" if spec.lines and self._only_flags else None

    def parse(self, arguments: Sequence[str]) -> list[Any]:
        """Read a command line; return the options of each part, in the parts' order.

        Flags may be between positional arguments, but not after `--`. The files of `--plugin` are
        loaded. A merged part gets its absent flags from other sources: it is a `Written`.

        Raises:
            ConfigError: every problem of the command line, unless a part takes them.
        """
        arguments, tail = self._with_quoted(arguments), list[str]()
        rest = [spec.name for spec in self.specs() if spec.argument.startswith("[--")]
        if rest and "--" in arguments:
            at = arguments.index("--")
            arguments, tail = arguments[:at], arguments[at + 1 :]
        read = self._parser.parse_known_intermixed_args
        if "--" in arguments:  # for the intermixed form an argument
            read = self._parser.parse_known_args
        try:
            other, extra = read(arguments, argparse.Namespace(values={}, repeated=[]))
        except ConfigError as error:
            raise ConfigError(self._explained(str(error))) from None
        values: Layer = other.values | {name: (tail, "--") for name in rest if tail}
        if "--plugin" in self.declared and self.declared["--plugin"][0].many:
            for file in values.get("plugin", ([],))[0]:  # type: ignore[attr-defined]
                plugins.load(file)
        problems = [*self._unknown(extra), *other.repeated]
        problems += [
            f"{values[spec.name][1]} and {values[other][1]} are both given; keep one"
            for spec in self.specs()
            for other in spec.excludes
            if spec.name in values and other in values
        ]
        merged = [part for part in self.parts if part.merged]
        own = {name for part in self.parts if not part.merged for name in part.names()}
        others = {name: value for name, value in values.items() if name not in own}
        configs, wrong = list[Any](), list(problems)
        for part in self.parts:
            if part.merged:
                names = others if part.only is None else part.only
                layer = {name: value for name, value in others.items() if name in names}
                configs.append(Written(layer, problems))
                continue
            names = part.names()
            try:
                configs.append(resolve(part.cls, [{n: v for n, v in values.items() if n in names}]))
            except ConfigError as error:
                wrong.append(str(error))
        if len(wrong) > len(problems) or (wrong and not merged):
            raise ConfigError("\n".join(wrong))
        return configs

    def _with_quoted(self, arguments: Sequence[str]) -> list[str]:
        """Join the flags whose value stands in quotes with it, since it begins with a dash."""
        quoted = {flag for flag, (spec, *_) in self.declared.items() if spec.metavar[:1] == '"'}
        words = list(arguments)
        for at in range(len(words) - 1, 0, -1):
            if words[at - 1] in quoted:
                words[at - 1 : at + 1] = [f"{words[at - 1]}={words[at]}"]
        return words

    def _explained(self, message: str) -> str:
        """Return a message of argparse, with the help of its argument."""
        required = "the following arguments are required: "
        name = message.removeprefix(required).removeprefix("argument ").partition(": ")[0]
        about = {
            "/".join(action.option_strings) or str(action.metavar): str(action.help)
            for action in self._parser._actions
        }
        what = about.get(name.partition(", ")[0], "see above").replace("%%", "%")
        if message.startswith(required):
            return f"{name} is missing: {what}; as in `mlxhog {self._example}`"
        return f"{message}: {what}" if message.endswith("expected one argument") else message

    def _unknown(self, extra: Sequence[str]) -> Iterable[str]:
        after_unknown = False
        for word in extra:
            if word.startswith("-") and word != "-":
                flag, equals, _ = word.partition("=")
                hint = _of_own_choice(flag) or suggestion(flag, self._known) or self._otherwise
                yield f"no flag {flag!r}{hint}"
                after_unknown = not equals
                continue
            is_flag = f"--{word}" in self._known
            if is_flag:
                yield f"unexpected argument {word!r}; did you mean '--{word}'?"
            elif not after_unknown:  # the value of an unknown flag is not a second problem
                names_text = "--data" in self._known and Path(word).exists()
                hint = self._otherwise if self._only_flags else ""
                hint = f"; text is named by a flag: --data {word}" if names_text else hint
                yield f"unexpected argument {word!r}{hint}"
            after_unknown = is_flag


def _of_own_choice(flag: str) -> str:
    """Say how a number of a choice of the user's own is written; it has no flag."""
    for kind in KINDS:
        number = kind.numbers().get(flag.lstrip("-").replace("-", "_"))
        if number and not number.owners[0].__module__.startswith("mlxhog."):
            name = f"{number.owners[0].name}({number.option.name}=VALUE)"
            return f'; write {to_flag(kind.title)} "{name}"'
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
    """Show the help of all flags, or of the main ones without groups, and end."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, main: Sequence[str], help: str
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, 0, default=argparse.SUPPRESS, help=help)
        self._main = main

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(self._some(parser) if self._main else parser.format_help(), end="")
        parser.exit()

    def _some(self, parser: argparse.ArgumentParser) -> str:
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
        collects: whether the flag may stand several times, or what joins its values.
    """

    def __init__(self, *args: Any, collects: bool | str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.collects = collects

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is argparse.SUPPRESS or (not self.option_strings and values in (None, [])):
            return  # an absent word
        value = self.const if self.nargs == 0 else values
        earlier = namespace.values.get(self.dest, (None,))[0]
        if self.collects is True:
            value = [*(earlier or ()), *(value if isinstance(value, list) else [value])]
        elif self.collects:
            value = "\n".join(value) if isinstance(value, list) else value
            keeps = earlier is not None
            keeps = keeps and (self.collects == "\n" or "none" not in (earlier, value))
            value = f"{earlier}{self.collects}{value}" if keeps else value
        elif earlier is not None:
            first = namespace.values[self.dest][1]
            namespace.repeated.append(f"{first} and {option_string} are the same option; keep one")
        name = option_string or self.metavar or self.dest
        namespace.values[self.dest] = (value, name)


def _shows_default(spec: Option) -> bool:
    bare = spec.switch or spec.argument or spec.many or spec.required
    return not (bare or (spec.metavar and spec.default in (None, "")))


def _help(spec: Option, default: str | None) -> str:
    if default == "":
        return spec.help
    words = ""
    if len(words_of(spec)) > MOST_CHOICES or spec.kind is not None:
        words = f"; one of {', '.join(words_of(spec))}"
    return f"{spec.help}{words} [{spec.default_text if default is None else default}]"


def words_of(spec: Option) -> Sequence[str]:
    """Return the legal words of an option, if they are few."""
    if spec.type is bool:
        return () if spec.switch else ("true", "false")
    return list(spec.kind.known()) if isinstance(spec.kind, Kind) else spec.choices


def _metavar(spec: Option) -> str:
    if spec.argument or spec.metavar:
        return spec.metavar or spec.argument.strip("[].")
    if spec.kind is not None or len(spec.choices) > MOST_CHOICES:
        return "NAME"
    if spec.repeats:
        return "NAME=VALUE"
    if spec.choices:
        return "{" + ",".join(spec.choices) + "}"
    if spec.type is Interval:
        return "STEPS|TIME|off"
    if spec.type is bool:
        return "true|false"
    if spec.type is float:
        return "TIME" if spec.unit == "s" else "X"
    return "N" if spec.type is int else "TEXT"
