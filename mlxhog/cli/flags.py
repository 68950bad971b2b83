"""Flags from option dataclasses: `Flags` finds the words, `config.sources` reads their meaning."""

import argparse
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mlxhog.base.quantities import Interval
from mlxhog.config import plugins
from mlxhog.config.choices import KINDS, Choice, Kind
from mlxhog.config.options import Option, argument, option, options, switch, to_flag
from mlxhog.config.sources import Layer, resolve, suggestion
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run

C = TypeVar("C")
MOST_CHOICES = 6  # they fit beside the flag


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The option of commands on runs."""

    out: str = option("runs", "folder that holds the runs")

    def find(self, name: str) -> "Run":
        """Return a run by its path, its name or a part of it, or `latest`; else a RunError."""
        from mlxhog.checkpoint.run import find

        return find(name, Path(self.out))


def run_argument(usage: str = "RUN", default: object = None) -> Any:  # a dataclass field
    """Declare the word that names a run, or several."""
    return argument(usage, "a path, a run's name or a part of it, or latest", default)


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

    @property
    def names(self) -> Collection[str]:
        """Names of its options."""
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
        """Return them as the dataclass; a ConfigError has every problem."""
        return resolve(cls, [self.values], self.problems)


class Declared(NamedTuple):
    """An option of a command, the choices whose number it is, and its part."""

    spec: Option
    owners: Sequence[type[Choice]]
    part: Part

    @property
    def default(self) -> str:
        """The default as the help shows it; "" where it shows none."""
        if self.part.default is not None:
            return self.part.default
        spec = self.spec
        bare = spec.switch or spec.argument or spec.many or spec.required
        return "" if bare or (spec.metavar and spec.default is None) else spec.default_text


class Flags:
    """The options of one command, and the reader of its command line.

    Args:
        command: its name.
        about: one or two sentences.
        examples: command lines.
        parts: its options.
        main: names of the flags that `--help` shows; `--help-all` then shows all. All by default.
        otherwise: advice for an unknown flag without a similar known one.

    Attributes:
        declared: every option, by its flag or its place in the usage line.
        by_flag: every flag, aliases included, and its option.
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
        self._command, self._about, self._examples = command, about, examples
        self.parts, self._main, self._otherwise = parts, main, otherwise
        self.declared: dict[str, Declared] = {}
        self.by_flag: dict[str, Option] = {}
        for part in parts:
            for spec, owners in _with_numbers(options(part.cls).values()):
                place = spec.argument or spec.flag
                if place not in self.by_flag and (part.only is None or spec.name in part.only):
                    self.declared[place] = Declared(spec, owners, part)
                    self.by_flag |= dict.fromkeys(spec.flags, spec)
        self._words = [spec for spec in self.specs() if spec.argument]

    def specs(self) -> list[Option]:
        """Return every option and number of the command."""
        return [one.spec for one in self.declared.values()]

    # -- reading ------------------------------------------------------------------------------

    def parse(self, arguments: Sequence[str]) -> list[Any]:
        """Read a command line; return the options of each part, in the parts' order.

        Flags may be between positional arguments, but not after `--`. The files of `--plugin` are
        loaded. A merged part gets its absent flags from other sources: it is a `Written`.

        Raises:
            ConfigError: every problem of the command line, unless a part takes them.
        """
        values, unknown, problems = self._read(deque(arguments))
        files = values.get("plugin", ([],))[0]  # of train's own option a text, loaded with it
        for file in files if isinstance(files, list) else []:
            plugins.load(file)
        known = ["--help", *["--help-all"] * bool(self._main), *self.by_flag]
        problems[:0] = [
            f"no flag {flag!r}{_of_own_choice(flag) or suggestion(flag, known) or self._otherwise}"
            for flag in unknown
        ]
        problems += [
            f"{values[spec.name][1]} and {values[other][1]} are both given; keep one"
            for spec in self.specs()
            for other in spec.excludes
            if spec.name in values and other in values
        ]
        own = {name for part in self.parts if not part.merged for name in part.names}
        configs, wrong = list[Any](), list[str]()
        for part in self.parts:
            names = values.keys() if part.merged and part.only is None else part.names
            names = {*names} - own if part.merged else names
            layer = {name: value for name, value in values.items() if name in names}
            try:
                configs.append(
                    Written(layer, problems) if part.merged else resolve(part.cls, [layer])
                )
            except ConfigError as error:
                wrong.append(str(error))
        if wrong or (problems and not any(part.merged for part in self.parts)):
            raise ConfigError("\n".join([*problems, *wrong]))
        return configs

    def _read(self, words: deque[str]) -> tuple[Layer, list[str], list[str]]:
        """Return the values of a command line, its unknown flags, and its other problems.

        Raises:
            ConfigError: a word or a flag is missing that it must have.
        """
        values, unknown, problems = Layer(), list[str](), list[str]()
        rest = [spec for spec in self._words if spec.argument.startswith("[--")]
        places = deque(spec for spec in self._words if spec not in rest)
        is_ended, follows_wrong = False, False
        while words:
            word = words.popleft()
            flag, equals, text = word.partition("=")
            if word[:2] in self.by_flag and word[1] != "-":  # -c FILE, -cFILE or -c=FILE
                flag, equals, text = word[:2], word[2:], word[2:].removeprefix("=")
            if is_ended or not _is_flag(word):
                is_name = not places and f"--{word}" in self.by_flag
                if places:
                    spec = places[0] if places[0].many else places.popleft()
                    self._add(values, spec, [word], _metavar(spec), problems)
                elif is_name:
                    problems.append(f"unexpected argument {word!r}; did you mean '--{word}'?")
                elif not follows_wrong:
                    problems.append(f"unexpected argument {word!r}{self._place_of(word)}")
                follows_wrong = is_name
            elif word in ("-h", "--help", "--help-all") and (self._main or word != "--help-all"):
                print(self._help(everything=word == "--help-all" or not self._main), end="")
                raise SystemExit(0)
            elif word == "--":
                is_ended = not rest
                if rest and words:
                    values[rest[0].name] = ([*words], "--")
                    words.clear()
            elif flag not in self.by_flag:
                unknown.append(flag)
                follows_wrong = not equals
            else:
                spec = self.by_flag[flag]
                if texts := [text] if equals else self._value(spec, words):
                    self._add(values, spec, texts, flag, problems)
                else:
                    problems.append(f"{flag}: expected one argument: {spec.help}")
                follows_wrong = False
        missing = {
            _metavar(spec) if spec.argument else spec.flag: spec.help
            for spec in self.specs()
            if (spec.required or spec.argument[:1] not in ("", "[")) and spec.name not in values
        }
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} is missing: {next(iter(missing.values()))}; as in "
                f"`mlxhog {self._examples[0]}`"
            )
        return values, unknown, problems

    def _value(self, spec: Option, words: deque[str]) -> list[str]:
        if spec.type is bool:
            may = not spec.switch and words and words[0].lower() in ("true", "false")
            return [words.popleft() if may else "true"]
        texts = list[str]()
        most = len(words) if spec.lines and not self._words else 1
        while words and len(texts) < most and (spec.metavar[:1] == '"' or not _is_flag(words[0])):
            texts.append(words.popleft())
        return texts

    def _add(
        self, values: Layer, spec: Option, texts: list[str], name: str, problems: list[str]
    ) -> None:
        """Keep a value with its flag, or with its place in the usage line."""
        earlier, first = values.get(spec.name, (None, name))
        value: Any = texts if spec.many else "\n".join(texts)
        if earlier is None:
            pass
        elif spec.many:
            value = [*earlier, *texts]  # type: ignore[misc]
        elif spec.lines or (spec.repeats and "none" not in (earlier, value)):
            value = f"{earlier}{', ' if spec.repeats else chr(10)}{value}"
        elif not spec.repeats:
            problems.append(f"{first} and {name} are the same option; keep one")
        values[spec.name] = (value, name)

    def _place_of(self, word: str) -> str:
        """Return advice for a word that has no place."""
        if "--data" in self.by_flag and Path(word).exists():
            return f"; text is named by a flag: --data {word}"
        return "" if self._words else self._otherwise

    # -- help ---------------------------------------------------------------------------------

    def _help(self, *, everything: bool) -> str:
        prog = f"mlxhog {self._command}"
        helps = {"-h --help": "show this, and stop"}
        if self._main:
            helps = {"-h --help": "show the main options, and stop"}
            helps["--help-all"] = "show every option, and stop"
        first = [
            argparse.Action(flags.split(), "", 0, help=about) for flags, about in helps.items()
        ]
        groups = {"positional arguments": list[argparse.Action](), "options": first}
        for one in self.declared.values():
            title = one.spec.group if one.part.group is None else one.part.group
            title = title or ("positional arguments" if one.spec.argument else "options")
            if not one.spec.argument.startswith("[--"):
                groups.setdefault(title, []).append(self._action(one))
        every = [action for group in groups.values() for action in group]
        if not everything:
            named = {action.dest: action for action in every}
            positional = [action for action in every if not action.option_strings]
            groups = {"main options": [*positional, *(named[name] for name in self._main)]}
        layout = argparse.RawDescriptionHelpFormatter(prog)
        words = [prog, *(spec.argument for spec in self._words), "[options]"]
        layout.add_usage(" ".join(words), (), ())
        layout.add_text(self._about)
        for title, group in groups.items():
            layout.start_section(title)
            layout.add_arguments(group)
            layout.end_section()
        if not everything:
            n_flags = sum(bool(action.option_strings) for action in every)
            layout.add_text(f"--help-all lists all {n_flags} options.")
        layout.add_text("\n".join(["examples:", *(f"  mlxhog {one}" for one in self._examples)]))
        return layout.format_help()

    def _action(self, declared: Declared) -> argparse.Action:
        """Return an option as the layout of argparse takes it."""
        spec = declared.spec
        values: str | int | None = "+" if spec.lines and not self._words else None
        if spec.type is bool:
            values = 0 if spec.switch else "?"
        words = ""
        if len(words_of(spec)) > MOST_CHOICES or spec.kind is not None:
            words = f"; one of {', '.join(words_of(spec))}"
        shown = f"{spec.help}{words} [{declared.default}]" if declared.default else spec.help
        return argparse.Action(
            spec.flags, spec.name, values, metavar=_metavar(spec), help=shown.replace("%", "%%")
        )


def _is_flag(word: str) -> bool:
    """Whether a word is a flag, and not a text, a negative number or a lone dash."""
    flag = word.partition("=")[0]
    return flag[:1] == "-" and len(flag) > 1 and flag[1] not in "0123456789." and " " not in flag


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
    of_type = {Interval: "STEPS|TIME|off", bool: "true|false", int: "N"}
    of_type[float] = "TIME" if spec.unit == "s" else "X"
    return of_type.get(spec.type, "TEXT")
