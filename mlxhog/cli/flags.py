"""Flags from option dataclasses: words by name, of which `config.sources` makes values."""

import argparse
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

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


def plugin_flag() -> Any:  # a dataclass field
    """Declare `--plugin`; its files are loaded while the command line is read."""
    return option(
        (),
        "a Python file that adds layers, tasks, schedules, optimizers or strategies, such as "
        "examples/my_layer.py",
        many=True,
        metavar="FILE",
    )


def quiet_flag() -> Any:  # a dataclass field
    """Declare `--quiet`."""
    return switch("only errors, and the JSON of --json")


def dry_run_flag(help: str = "say what would run, and stop") -> Any:  # a dataclass field
    """Declare `--dry-run`."""
    return switch(help)


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
        names: every option that was written, of any part.
        problems: of the command line; for the one error that names all problems.
    """

    values: Layer
    names: Collection[str] = ()
    problems: list[str] = field(default_factory=list)

    def read(self, cls: type[C]) -> C:
        """Return them as the dataclass.

        Raises:
            ConfigError: every problem of them, and of the command line.
        """
        return resolve(cls, [self.values], self.problems)

    def checked(self) -> Layer:
        """Return the values if the command line has no problem.

        Raises:
            ConfigError: it has some.
        """
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        return self.values


class Flags:
    """The words of one command: their help, and their reader.

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
        self.parts, self._otherwise = parts, otherwise
        self._command, self._about, self._main = command, about, main
        self._examples = examples or [command]
        self._by_flag: dict[str, Option] = {}
        self._sections: dict[str, list[Option]] = {"positional arguments": [], "options": []}
        for part in parts:
            for spec, owners in _with_numbers(options(part.cls).values()):
                unwanted = part.only is not None and spec.name not in part.only
                if unwanted or (spec.flag in self._by_flag and not spec.argument):
                    continue
                self.declared[spec.argument or spec.flag] = (spec, owners, part.default)
                self._by_flag |= dict.fromkeys(spec.flags, spec)
                title = (spec.group if part.group is None else part.group) or "options"
                title = "positional arguments" if spec.argument else title
                if spec.argument.startswith("[--"):
                    continue
                self._sections.setdefault(title, []).append(spec)
        self._words = [spec for spec in self.specs() if spec.argument]
        self._helps = {"-h", "--help", *["--help-all"] * bool(main)}
        self._known = [*self._helps, *self._by_flag]

    def specs(self) -> list[Option]:
        """Return every option and number of the command."""
        return [spec for spec, *_ in self.declared.values()]

    # -- reading -----------------------------------------------------------------------------------

    def parse(self, arguments: Sequence[str]) -> list[Any]:
        """Read a command line; return the options of each part, in the parts' order.

        Flags may be between positional arguments, but not after `--`. The files of `--plugin` are
        loaded. A merged part gets its absent flags from other sources: it is a `Written`.

        Raises:
            ConfigError: every problem of the command line, unless a part takes them.
        """
        values, problems = self._read(list(arguments))
        if "--plugin" in self.declared and self.declared["--plugin"][0].many:
            for file in values.get("plugin", ([],))[0]:  # type: ignore[attr-defined]
                plugins.load(file)
        configs, wrong, own = [], list(problems), set[str]()
        for part in self.parts:
            if part.merged:
                configs.append(part)
                continue
            own |= set(part.names())
            try:
                configs.append(
                    resolve(part.cls, [{n: v for n, v in values.items() if n in part.names()}])
                )
            except ConfigError as error:
                wrong.append(str(error))
        merged = [part for part in self.parts if part.merged]
        if len(wrong) > len(problems) or (wrong and not merged):
            raise ConfigError("\n".join(wrong))
        others = {name: value for name, value in values.items() if name not in own}
        return [
            Written({n: v for n, v in others.items() if one.only is None or n in one.only},
                    values.keys(), problems) if isinstance(one, Part) else one
            for one in configs
        ]  # fmt: skip

    def _read(self, words: list[str]) -> tuple[Layer, list[str]]:
        """Return the values of a command line by name, and what is wrong with its words.

        Raises:
            ConfigError: a flag has no value, or an argument is missing.
        """
        values, first, places = Layer(), dict[str, str](), list[tuple[str, bool]]()
        unknown, twice, tail, after_unknown = list[str](), list[str](), list[str](), False
        while words:
            word = words.pop(0)
            flag, equals, value = word.partition("=")
            if word == "--":
                tail, words = words, []
            elif flag in self._helps and not equals:
                print(self._help(() if flag == "--help-all" else self._main), end="")
                raise SystemExit(0)
            elif not self._is_flag(word):
                places.append((word, after_unknown))
                after_unknown = False
            elif (spec := self._by_flag.get(flag)) is None:
                hint = self._inside(flag, value if equals else "".join(words[:1]))
                hint = hint or suggestion(flag, self._known) or self._otherwise
                unknown.append(f"no flag {flag!r}{hint}")
                after_unknown = not equals
            else:
                after_unknown = False
                taken = [value] if equals else self._taken(spec, words)
                written = word if equals or not taken else f"{word} {' '.join(taken)}"
                taken = taken or ["true"]
                if spec.name in first and not (spec.many or spec.lines or spec.repeats):
                    twice.append(f"{first[spec.name]} and {written} are the same option; keep one")
                first.setdefault(spec.name, written)
                earlier = values.get(spec.name, (None,))[0]
                values[spec.name] = (_added(spec, earlier, taken), flag)
        rest = [spec for spec in self._words if spec.argument.startswith("[--")]
        if rest and tail:
            values[rest[0].name] = (tail, "--")
        else:
            places += [(word, False) for word in tail]
        return values, [*unknown, *self._unexpected(self._placed(places, values)), *twice]

    def _is_flag(self, word: str) -> bool:
        """Whether a word is a flag: not a lone dash, a negative number, or flags in quotes."""
        known = word.partition("=")[0] in self._by_flag
        return word[:1] == "-" and (known or not (" " in word or word[1:2] in "0123456789."))

    def _taken(self, spec: Option, words: list[str]) -> list[str]:
        """Take the value of a flag from the words after it; a value in quotes may have a dash."""
        most = 0 if spec.switch else 1
        if spec.lines and not self._words:  # else they may be the positional arguments
            most = len(words)
        taken = list[str]()
        while words and len(taken) < most:
            if spec.metavar[:1] != '"' and self._is_flag(words[0]):
                break
            taken.append(words.pop(0))
        if not taken and spec.type is not bool:
            raise ConfigError(f"{'/'.join(spec.flags)}: expected one argument: {spec.help}")
        return taken

    def _placed(self, places: list[tuple[str, bool]], values: Layer) -> list[tuple[str, bool]]:
        """Give the words without a flag to the arguments; return those that are too many.

        Raises:
            ConfigError: too few.
        """
        specs = [spec for spec in self._words if not spec.argument.startswith("[--")]
        lacking = list[Option]()
        for number, spec in enumerate(specs):
            later = sum(not one.argument.startswith("[") for one in specs[number + 1 :])
            room = max(0, len(places) - later)
            is_needed = not spec.argument.startswith("[")
            n = max(room if spec.many else min(1, room), int(is_needed))
            taken, places = [word for word, _ in places[:n]], places[n:]
            if taken:
                name = spec.metavar or spec.argument.strip("[].")
                values[spec.name] = (taken if spec.many else taken[0], name)
            elif is_needed:
                lacking.append(spec)
        if lacking:
            names = ", ".join(spec.metavar or spec.argument.strip("[].") for spec in lacking)
            what = "" if lacking[0].help == "see above" else f": {lacking[0].help}"
            raise ConfigError(f"{names} is missing{what}; as in `mlxhog {self._examples[0]}`")
        return places

    def _unexpected(self, places: Iterable[tuple[str, bool]]) -> Iterator[str]:
        after_flag = False
        for word, after_unknown in places:
            is_flag = f"--{word}" in self._known
            if is_flag:
                yield f"unexpected argument {word!r}; did you mean '--{word}'?"
            elif not (after_unknown or after_flag):  # the value of such a flag is no second problem
                names_text = "--data" in self._known and Path(word).exists()
                hint = "" if self._words else self._otherwise
                hint = f"; text is named by a flag: --data {word}" if names_text else hint
                yield f"unexpected argument {word!r}{hint}"
            after_flag = is_flag

    def _inside(self, flag: str, value: str) -> str:
        """Say how a number of a choice of the user's own is written; it has no flag."""
        for kind in (kind for kind in KINDS if to_flag(kind.title) in self._known):
            for name, (_, (owner, *_)) in kind.numbers().items():
                if to_flag(name) == flag and not owner.__module__.startswith("mlxhog."):
                    return f'; write {to_flag(kind.title)} "{owner.name}({name}={value})"'
        return ""

    # -- help --------------------------------------------------------------------------------------

    def _help(self, main: Sequence[str]) -> str:
        """Return the help of all flags, or of the main ones without groups."""
        arguments = " ".join([self._command, *(spec.argument for spec in self._words)])
        form = argparse.RawDescriptionHelpFormatter(prog=f"mlxhog {self._command}")
        form.add_usage(f"mlxhog {arguments} [options]", (), ())
        form.add_text(self._about)
        shown = {title: list(map(self._line, specs)) for title, specs in self._sections.items()}
        about = "show the main options, and stop" if self._main else "show this, and stop"
        helps = [_line(["-h", "--help"], "help", 0, about)]
        if self._main:
            helps.append(_line(["--help-all"], "help_all", 0, "show every option, and stop"))
        shown["options"] = [*helps, *shown["options"]]
        n_flags = sum(len(lines) for lines in shown.values()) - len(shown["positional arguments"])
        if main:
            of = {line.dest: line for lines in shown.values() for line in lines}
            shown = {"main options": [*shown["positional arguments"], *(of[name] for name in main)]}
        for title, lines in shown.items():
            form.start_section(title)
            form.add_arguments(lines)
            form.end_section()
        if main:
            form.add_text(f"--help-all lists all {n_flags} options.")
        form.add_text("examples:\n" + "\n".join(f"  mlxhog {one}" for one in self._examples))
        return form.format_help()

    def _line(self, spec: Option) -> argparse.Action:
        default = self.declared[spec.argument or spec.flag][2]
        default = "" if default is None and not _shows_default(spec) else default
        n: str | int | None = 0 if spec.switch else "?" if spec.type is bool else None
        n = "+" if spec.lines and not self._words else n
        return _line(spec.flags, spec.name, n, _help(spec, default), _metavar(spec))


def _line(
    flags: Sequence[str], name: str, n: str | int | None, help: str, metavar: str | None = None
) -> argparse.Action:
    return argparse.Action(flags, name, n, help=help.replace("%", "%%"), metavar=metavar)


def _added(spec: Option, earlier: object, taken: list[str]) -> object:
    """Return the value of a flag, with that of the same flag before it."""
    if spec.many:
        return [*(earlier or ()), *taken]  # type: ignore[misc]
    value = "\n".join(taken)
    if earlier is None or not (spec.lines or spec.repeats):
        return value
    if spec.repeats and "none" in (earlier, value):
        return value
    return f"{earlier}{', ' if spec.repeats else chr(10)}{value}"


def _with_numbers(specs: Iterable[Option]) -> Iterator[tuple[Option, list[type[Choice]]]]:
    """Yield options, and after each choice all numbers of its kind as flags, with their choices."""
    for spec in specs:
        yield spec, []
        if isinstance(kind := spec.kind, Kind):
            for flat, (number, owners) in kind.numbers().items():
                of = ", ".join(owner.name for owner in owners)
                group = f"numbers of {kind.plural}"
                yield replace(number, name=flat, group=group, help=f"{of}: {number.help}"), owners


def _shows_default(spec: Option) -> bool:
    bare = spec.switch or spec.argument or spec.many
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
