"""What can be chosen by name: layers, tasks, schedules, optimizers and strategies.

A choice is a class that owns its numbers (in `mlxhog/strategies`, `mlxhog/optim`, `schedules.py`,
or a file of the user's own):

    @dataclass(frozen=True, kw_only=True)
    class SSP(AsyncPS):
        name: ClassVar[str] = "ssp"
        slack: int = option(3, "steps that a worker may be ahead", unit="steps", low=0)

It is spelt with its numbers; the others have their defaults:

    ssp    ssp(slack=2)    {name: ssp, slack: 2}    ssp(slack=2, staleness_lr=linear:0.1)

A comma divides numbers only where a name and "=" follow, so `staleness=speed:1,4` is one. Flat
names (`--slack 2`, `slack: 2`) are shorthand for numbers of the choice that a run has; a number
whose name is unclear alone has a longer flat name (`backoff(beta=0.5)`, `--backoff-beta 0.5`).

A `Kind` has the choices of one kind. Its `home` is the module that registers those of the package;
it is imported when a choice is first looked up. `--plugin` loads files of the user's own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, replace
from fnmatch import fnmatchcase
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from mlxhog.config.options import Option, convert_fields, options, spelt
from mlxhog.errors import ConfigError, did_you_mean, nearest, shown

NAME = re.compile(r"[A-Za-z][\w-]*")
_SPELT = re.compile(rf"({NAME.pattern})\s*(?:\((.*)\))?", re.DOTALL)  # of a stripped text
_FORMS = "a name, a name with numbers such as ssp(slack=2), or {name: ssp, slack: 2}"
_COMMA = re.compile(r",\s*(?=[A-Za-z_]\w*\s*=)")

T = TypeVar("T")
"""The type of the entries of a registry, such as classes of choices."""


class UnknownChoice(ConfigError):
    """No choice of a kind, such as "layer", has this name; ";" ends the words that say so."""


class Registry(Generic[T]):
    """Things of one kind by their names: those of the package, and those of users' files."""

    def __init__(self, title: str, home: str, form: str, *, plural: str = "") -> None:
        """Name the kind, and the module that registers those of the package.

        `form` describes one in a user's file, for errors.
        """
        self.title, self.form, self.plural = title, form, plural or f"{title}s"
        self._home = home
        self._by_name: dict[str, T] = {}
        self._check: Callable[[T], object] | None = None

    def checked_by(self, check: Callable[[T], object]) -> Callable[[T], object]:
        """Let a function refuse wrong entries by a `ConfigError`; also as a decorator."""
        self._check = check
        return check

    def register(self, choice: T) -> T:
        """Add a choice under its name; also as a decorator.

        Raises:
            ConfigError: its name is illegal or taken, or `checked_by` refuses it.
        """
        name = getattr(choice, "name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f"its name is {shown(name)}; use a letter and then letters, digits, '-' or '_'"
            )
        if self._check is not None:
            self._check(choice)
        if self._by_name.setdefault(name, choice) is not choice:
            raise ConfigError(f"there is a {self.title} {name!r} already; give yours another name")
        return choice

    def known(self) -> Mapping[str, T]:
        """Every choice by its name, in the order of registration."""
        importlib.import_module(self._home)
        return MappingProxyType(self._by_name)

    def find(self, name: str) -> T:
        """Return the choice of a name.

        Raises:
            UnknownChoice: no choice has that name; the error suggests the nearest one.
        """
        known = self.known()
        if name not in known:
            raise self.unknown(name, known, ", ".join(known))
        return known[name]

    def unknown(self, name: str, names: Iterable[str], listed: str) -> UnknownChoice:
        """Return the error for a name; it suggests the nearest one, or lists all."""
        near = nearest(name, names)
        hint = f"did you mean {near!r}?" if near else f"known are {listed}."
        return UnknownChoice(
            f"no {self.title} {shown(name)}; {hint} {self.plural.capitalize()} of your own need "
            "the file that defines them: --plugin FILE"
        )


Rules = tuple[tuple[str, str, str], ...]
"""Contradictions: an option, a condition, and the sentence with the way out.

Terms of a condition are joined by " & ": `overlap` or `not overlap` for an option that is set or is
not, `write=cas|racy` or `write!=auto` for its value, where `*` is any text. The sentence may name
values: {write}. A rule about an option that a run lacks, such as a number of another choice, does
not hold; a name that no option and no attribute has is an error."""
_UNSET = ("none", "off", "auto", "false", "0", "0.0")


def broken(
    rules: Iterable[tuple[str, str, str]],
    values: Mapping[str, object],
    choice: object = None,
    is_elsewhere: Callable[[str], bool] = lambda name: False,
) -> Iterator[tuple[str, str]]:
    """Yield (option, sentence) for each rule whose condition holds.

    `values` are by flat names, as people write them; attributes of `choice` count as values, too. A
    rule about a name that `is_elsewhere`, such as a number of another choice, does not hold.

    Raises:
        ConfigError: a condition has another name.
    """
    for name, condition, sentence in rules:
        terms = condition.split(" & ")
        missing = [n for n in map(name_of, terms) if n not in values and not hasattr(choice, n)]
        for unknown in missing:
            if not is_elsewhere(unknown):
                raise ConfigError(
                    f"the rule {condition!r} of {name} is about {unknown!r}, which is neither an "
                    f"option nor an attribute of the choice{did_you_mean(unknown, values)}"
                )
        if not missing and all(holds(term, values, choice) for term in terms):
            yield name, sentence.format_map(values)


def name_of(term: str) -> str:
    """Return the name that a term of a condition is about."""
    return term.partition("=")[0].removeprefix("not ").rstrip("!")


def holds(term: str, values: Mapping[str, object], choice: object = None) -> bool:
    """Whether a term of a condition holds; an AttributeError if it names nothing that is there."""
    left, equals, words = term.partition("=")
    negative, name = left.startswith("not ") or left.endswith("!"), name_of(term)
    text = str(values[name] if name in values else getattr(choice, name)).lower()
    is_so = (
        any(fnmatchcase(text, word) for word in words.split("|")) if equals else text not in _UNSET
    )
    return is_so != negative


def rules_of(cls: type) -> Iterator[tuple[str, str, str]]:
    """Yield the rules of the bases of a class, and its own."""
    for base in reversed(cls.__mro__):
        yield from vars(base).get("rules", ())


class Choice:
    """The base of all choices of a run: a frozen dataclass whose `option` fields are its numbers.

    A plain field such as `depth: int = 3` is a number, too, without limits and help. `rules` has
    contradictions between its numbers, and with options of a run; those of its bases hold, too.
    """

    rules: ClassVar[Rules] = ()
    name: ClassVar[str]  # in flags and files; only a class that defines it itself is a choice
    about: ClassVar[str]  # one line for help and documentation
    kind: ClassVar[Kind]  # the registry that it belongs to
    takes_plain_fields: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Convert and check every number.

        Raises:
            ConfigError: naming every wrong number and every broken rule.
        """
        problems = convert_fields(self) or [*self.broken_rules()]
        if problems:
            raise ConfigError("\n".join(f"{self.name}: {problem}" for problem in problems))

    def broken_rules(self) -> Iterable[str]:
        """Yield contradictions between numbers of this choice, with the way out.

        Rules about options of a run are for `contradictions.of`.
        """
        specs = options(type(self))
        values = {specs[name].flat: value for name, value in spelt(self).items()}
        rules = broken(rules_of(type(self)), values, self, is_elsewhere=lambda name: True)
        return (f"{name}: {problem}" for name, problem in rules)

    @classmethod
    def is_own(cls) -> bool:
        """Whether the class is a user's own, so that no class of the package may replace it."""
        return not cls.__module__.startswith("mlxhog.")

    def __str__(self) -> str:
        """Spell it, with the numbers that are not the defaults; `Kind.read` reads it back."""
        specs = options(type(self))
        numbers = [
            f"{name}={'true' if value is True else 'false' if value is False else value}"
            for name, value in spelt(self).items()
            if getattr(self, name) != specs[name].default
        ]
        return f"{self.name}({', '.join(numbers)})" if numbers else self.name

    def to_dict(self) -> dict[str, object]:
        """Return its name and all numbers, as YAML and JSON have them."""
        return {"name": self.name, **spelt(self)}


class Kind(Registry[type[Choice]]):
    """Choices that a run makes by an option of its own, such as `--strategy`."""

    def register(self, choice: type[Choice]) -> type[Choice]:
        """Add a choice, also as a decorator.

        Raises:
            ConfigError: as of a `Registry`; or the class is not a frozen dataclass, so its numbers
                would be lost.
        """
        params = vars(choice).get("__dataclass_params__")
        forgot = any(isinstance(value, Field) for value in vars(choice).values())
        if forgot if params is None else not params.frozen:
            raise ConfigError(
                f"put @dataclass(frozen=True, kw_only=True) above it, as above every {self.title}"
            )
        return super().register(choice)

    def read(self, value: object) -> Choice:
        """Return a choice from its text, a mapping, or itself.

        Raises:
            UnknownChoice: no choice has that name.
            ConfigError: it has no such number, or a number has a wrong value.
        """
        if isinstance(value, Choice) and value.kind is self:
            return value
        name, numbers = self.parts(value)
        return self.make(name, {flat: (one, "") for flat, one in numbers.items()})

    def make(self, choice: type[Choice] | str, numbers: Mapping[str, tuple[object, str]]) -> Choice:
        """Return a choice, given or by its name, with numbers.

        `numbers` has for a flat name the value, and the beginning of an error about it or "".

        Raises:
            UnknownChoice: no choice has that name.
            ConfigError: every number that the choice lacks, or that has a wrong value.
        """
        choice = self.find(choice) if isinstance(choice, str) else choice
        specs = {spec.flat: spec for spec in options(choice).values()}
        values, wrong = dict[str, object](), list[str]()
        for flat, (value, begin) in numbers.items():
            try:
                values[specs[flat].name] = specs[flat].convert(value)
            except KeyError:
                wrong.append(f"{begin or self.title}: {self.lacks(choice, flat)}")
            except ValueError as error:
                wrong.append(f"{begin or f'{choice.name}: {specs[flat].name}'} {error}")
        if wrong:
            raise ConfigError("\n".join(wrong))
        return choice(**values)

    def parts(self, value: object) -> tuple[str, dict[str, object]]:
        """Return the name and the numbers of a value, whether or not the choice exists.

        If it exists, the numbers have their flat names.

        Raises:
            ConfigError: it has no form above, or the choice lacks a number.
        """
        name: object = None
        numbers: dict[str, object] = {}
        if isinstance(value, Choice):
            name, numbers = value.name, spelt(value)
        elif isinstance(value, Mapping):
            numbers = {str(key): one for key, one in value.items()}
            name = numbers.pop("name", None)
        elif isinstance(value, str) and (match := _SPELT.fullmatch(value.strip())):
            name, numbers = match[1], _numbers_in(match[2] or "")
        if not isinstance(name, str):
            raise ConfigError(f"wanted {_FORMS}")
        choice = type(value) if isinstance(value, Choice) else self.known().get(name)
        if choice is None:
            return name, numbers
        specs = options(choice).values()
        flat = {word: one.flat for one in specs for word in (one.flat, one.name)}
        for number in numbers:
            if number not in flat:
                raise ConfigError(self.lacks(choice, number))
        return name, {flat[number]: one for number, one in numbers.items()}

    @property
    def expected(self) -> str:
        """Description of a legal value."""
        return f"one of {', '.join(self.known())}"

    def numbers(self) -> Mapping[str, Option]:
        """Return every number of any choice by its flat name.

        A number means the same in all choices of a kind; its default, here that of the first one,
        may differ.
        """
        return _numbers_of(tuple(self.known().values()))

    def lacks(self, choice: type[Choice], number: str) -> str:
        """Return the error for a number that a choice lacks; it names the choices that have it."""
        by_name = {**{one.name: one for one in self.numbers().values()}, **self.numbers()}
        if number in by_name:
            owners = [owner.name for owner in by_name[number].owners]
            has = "has" if len(owners) == 1 else "have"
            return f"{choice.name} has no {number}; {', '.join(owners)} {has}"
        own = options(choice)
        near = did_you_mean(number, own)
        listed = f"; its numbers are {', '.join(own)}" if own else "; it has no numbers"
        return f"{choice.name} has no {number}{near or listed}"


def _numbers_in(text: str) -> dict[str, object]:
    numbers: dict[str, object] = {}
    for part in filter(str.strip, _COMMA.split(text)):
        number, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ConfigError(f"{number!r} has no value; write number=value")
        if number in numbers:
            raise ConfigError(f"{number} stands twice; keep one")
        numbers[number] = value
    return numbers


@cache
def _numbers_of(choices: tuple[type[Choice], ...]) -> Mapping[str, Option]:
    owners: dict[str, list[type[Choice]]] = {}
    first: dict[str, Option] = {}
    for choice in choices:
        for spec in options(choice).values():
            first.setdefault(spec.flat, spec)
            owners.setdefault(spec.flat, []).append(choice)
    return {flat: replace(spec, owners=tuple(owners[flat])) for flat, spec in first.items()}


_OF_BASE = "a dataclass with a name and the base mlxhog."
SCHEDULES = Kind("schedule", "mlxhog.config.schedules", f"{_OF_BASE}config.schedules.Schedule")
OPTIMIZERS = Kind("optimizer", "mlxhog.optim", f"{_OF_BASE}optim.OptimizerChoice")
STRATEGIES = Kind(
    "strategy", "mlxhog.strategies", f"{_OF_BASE}strategies.Strategy (examples/my_strategy.py)",
    plural="strategies",
)  # fmt: skip
KINDS = (SCHEDULES, OPTIMIZERS, STRATEGIES)
LAYERS: Registry[type[Any]] = Registry(
    "layer", "mlxhog.models.mad.layers",
    "a dataclass with a name and a kind, 'mixer' or 'channel' (examples/my_layer.py)",
)  # fmt: skip
TASKS: Registry[Any] = Registry(
    "task", "mlxhog.mad.tasks", "a dataclass of the base Task (examples/my_task.py)"
)
REGISTRIES = (LAYERS, TASKS, *KINDS)
"""Everything that a file of the user's own may add to."""
