"""Options: one definition from which YAML keys, flags, help and documentation derive.

A command's options are a frozen dataclass whose fields are made by `option`. `options` turns them
into `Option` objects, whose `convert` is the only place where a text becomes a typed value.
"""

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from operator import ge, gt, le, lt
from typing import Any, cast

from mlxhog.base import plain_yaml
from mlxhog.base.paths import read_path
from mlxhog.base.quantities import (
    Interval,
    parse_count,
    parse_duration_s,
    parse_number,
    python_number,
)
from mlxhog.errors import ConfigError, did_you_mean, shown

MAX_SEED = 2**32 - 1
RESEARCH = "research"  # the last group of options in a help
_METADATA = "mlxhog.option"
_OFF = ("none", "off", "auto", "false", "0", "0.0")  # values with which an option is not set
_PLAIN = (int, float, bool, str)  # types of a plain field that is an option; it may also be None


def option(default: object, help: str, **how: Any) -> Any:  # any annotation fits
    """Declare a dataclass field that is also a YAML key and a flag; `how` as of `Option`."""
    made = Option(default=default, help=help, **how)
    return dataclasses.field(default=default, metadata={_METADATA: made})


def option_of(cls: type, name: str, **how: Any) -> Any:
    """Declare a field as the option of another dataclass, with other `how` where it differs."""
    spec = options(cls)[name]
    made = dataclasses.replace(spec, **{"group": "", "unit": "", "requires": {}, **how})
    return dataclasses.field(default=made.default, metadata={_METADATA: made})


def argument(usage: str, help: str, default: object = None, **how: Any) -> Any:
    """Declare a field for a positional argument.

    `usage` is its name in the usage line: RUN; [RUN] if it may be absent; RUN... for several.
    """
    many = how.pop("many", usage.rstrip("]").endswith("..."))
    return option(() if many else default, help, argument=usage, many=many, **how)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option; limits and choices are those of legal values."""

    default: object  # value if neither YAML nor a flag gives one
    help: str  # one line
    group: str = ""  # heading under which `--help` and the documentation list it
    unit: str = ""  # of a number or an amount; "s" makes durations such as "10m" legal
    choices: tuple[str, ...] = ()  # legal texts
    low: float | None = None  # smallest number
    high: float | None = None  # largest number
    above: float | None = None  # numbers are greater
    below: float | None = None  # numbers are less
    aliases: tuple[str, ...] = ()  # other names, in snake_case, in YAML and as flags
    on: str = ""  # its value by an alias without one, as a flag; in YAML true, and false is none
    none: str = "none"  # the text for None, if the type allows it
    repeats: bool = False  # `NAME=VALUE`; values of further flags and sources are added
    lines: bool = False  # may have several values: a list, arguments or flags; kept as lines
    commas: bool = False  # may be a list, kept as a text with commas
    is_path: bool = False  # not empty; a leading ~ is the user's home
    flat: str = ""  # of a hyperparameter: its name outside of the component, by default its own
    registry: Any = None  # of a component: the `ComponentRegistry` that reads it
    argument: str = ""  # of a positional argument: its name in the usage line, see `argument`
    many: bool = False  # several arguments or flags, each one more text of a tuple
    metavar: str = ""  # name of the value in the help, in place of its type
    required: bool = False  # a command line must have it
    excludes: tuple[str, ...] = ()  # options that may not stand beside it on a command line
    short: str = ""  # a second flag of one letter
    reads: Callable[[str], object] | None = None  # of a text: raises ValueError for a wrong one
    # Options and their values without which this has no effect; () is any that is not off.
    requires: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    owners: tuple[Any, ...] = ()  # of a hyperparameter: the components that have it
    train_only: bool = False  # of a strategy's hyperparameter: workers of `mlxhog mad` lack it
    shown: str = ""  # text in place of the default
    name: str = ""  # of the field
    type: type = str  # of a value, without None
    optional: bool = False  # may be None

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return to_flag(self.flat)

    @property
    def off_flag(self) -> str:
        """The flag that sets a boolean option to false; "" of others."""
        return to_flag(f"no_{self.flat}") if self.type is bool else ""

    def argv(self, values: Iterable[str]) -> list[str]:
        """Return the arguments that set it to a value given as text."""
        if self.type is bool:
            own = {"true": self.flag, "false": self.off_flag}
            return [own[one.lower()] for one in values if one.lower() in own]
        texts = list(values)
        if len(texts) == 1 and texts[0].startswith("-"):  # else it is taken for a flag
            return [f"{self.flag}={texts[0]}"]
        return [self.flag, *texts]

    @property
    def flags(self) -> list[str]:
        """All its flags; [] for a positional argument."""
        if self.argument:
            return []
        return [*[f"-{self.short}"] * bool(self.short), self.flag, *map(to_flag, self.aliases)]

    @property
    def default_text(self) -> str:
        """The default as text."""
        if self.shown or self.many or self.required:
            return self.shown or "none"
        value = self.to_yaml_value(self.default)
        return str(value).lower() if isinstance(value, bool) else str(value)

    @property
    def expected(self) -> str:
        """Description of a legal value, for error messages and documentation."""
        if self.registry is not None:
            return f"{self.registry.expected}{f', or {self.none}' * self.optional}"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.type is bool:
            return "true or false"
        base = {int: "a whole number", float: "a number", str: "text"}.get(self.type)
        if self.repeats:
            base = plain_yaml.ASSIGNMENT
        elif self.type is Interval:
            base = f'{self.unit or "steps"}, a duration such as "10s", or off'
        elif self.type is float and self.unit == "s":
            base = 'seconds or a duration such as "10m"'
        limits = [f"{text} {x}" for text, _, x in self._limits if x is not None]
        text = " ".join([str(base), " and ".join(limits)]).strip()
        return f"{text}, or {self.none}" if self.optional else text

    def convert(self, value: object) -> object:
        """Return `value` as this option's type.

        Raises:
            ValueError: wrong type, not a choice, or out of range; the message continues a
                sentence that begins with the option's name.
        """
        if value is None or (self.optional and value == self.none):
            if self.optional or self.type is Interval:
                return Interval() if self.type is Interval else None
            raise ValueError(f"is empty; wanted {self.expected}")
        if self.many:
            return tuple(value) if isinstance(value, list | tuple) else (str(value),)
        value = python_number(value)
        got, converted = f"is {shown(value)}", cast(Any, None)
        if self.registry is None:
            with suppress(KeyError, TypeError, ValueError):
                converted = self._typed(value)
            if converted is None or not self._is_legal(converted):
                near = did_you_mean(value, self.choices)
                raise ValueError(f"{got}; wanted {self.expected}{near}")
        try:
            if self.registry is not None:
                return self.registry.read(value)
            if self.reads is not None:
                self.reads(converted)
            return str(read_path(converted)) if self.is_path else converted
        except (ConfigError, ValueError) as error:
            raise ValueError(f"{got}; {error}") from error

    def unmet(self, values: Mapping[str, object]) -> Iterable[str]:
        """Yield the required options that have other values than these, which are given as text."""
        for name, wanted in self.requires.items():
            value = str(values.get(name, "")).lower()
            if name in values and (value not in wanted if wanted else value in _OFF):
                yield name

    def _typed(self, value: object) -> Any:  # known at run time only
        if self.type is bool:
            return {"true": True, "false": False}[str(value).lower()]  # YAML's own, and as words
        if self.type is int:
            return parse_count(value)
        if self.type is float:
            return parse_duration_s(value) if self.unit == "s" else parse_number(value)
        if self.type is Interval:
            return Interval.parse(value, is_amount=bool(self.unit))
        if self.repeats:
            return plain_yaml.as_assignments(value)
        if (self.lines or self.commas) and isinstance(value, list | tuple) and value:
            return ("\n" if self.lines else ",").join(map(os.fspath, value))
        if self.on and isinstance(value, bool):
            return self.on if value else self.none
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("wanted text")
        return str(value)  # `name: 2024` in YAML is a name

    @property
    def _limits(self) -> Iterable[tuple[str, Callable[[Any, float], bool], float | None]]:
        return (
            ("at least", ge, self.low), ("above", gt, self.above),
            ("at most", le, self.high), ("below", lt, self.below),
        )  # fmt: skip

    def _is_legal(self, x: Any) -> bool:
        if isinstance(x, int | float):
            return all(limit is None or holds(x, limit) for _, holds, limit in self._limits)
        return not self.choices or x in self.choices

    def to_yaml_value(self, value: object) -> object:
        """Return `value` as in YAML; `convert` reads it back."""
        if value is None:
            return self.none
        if self.lines and "\n" in str(value):
            return str(value).split("\n")
        return str(value) if isinstance(value, Interval) or self.registry is not None else value


def options(cls: type) -> Mapping[str, Option]:
    """Return the options of a dataclass by name: its own in their order, then inherited ones.

    Positional arguments are in the order of declaration. If a class `takes_plain_fields`, fields
    such as `depth: int = 3` are options, too, unless they have `compare=False`; one that is an
    option of a base differs from it in the default only.
    """
    return _options(cls)


@cache  # a function of its own: mypy takes a class for unhashable
def _options(cls: type) -> Mapping[str, Option]:
    hints = {name: hint for base in reversed(cls.__mro__) for name, hint in _hints(base).items()}
    own = vars(cls).get("__annotations__", {})

    def is_inherited(field: dataclasses.Field[Any]) -> bool:
        spec = field.metadata.get(_METADATA)
        return field.name not in own and not (spec and spec.argument)

    specs = {}
    for field in sorted(dataclasses.fields(cls), key=is_inherited):
        spec = field.metadata.get(_METADATA)
        base, optional = _strip_none(hints[field.name])
        plain = base in _PLAIN and field.compare and field.default is not dataclasses.MISSING
        if spec is None and plain and getattr(cls, "takes_plain_fields", False):
            spec = _inherited(cls, field.name) or Option(default=field.default, help="")
        if spec is not None:
            known = {"name": field.name, "type": base, "optional": optional}
            flat = spec.flat or field.name
            specs[field.name] = dataclasses.replace(spec, default=field.default, flat=flat, **known)
    return types.MappingProxyType(specs)


def _inherited(cls: type, name: str) -> Option | None:
    """Return the inherited option whose default a plain field of a class overrides, if any."""
    fields = (vars(base).get("__dataclass_fields__", {}).get(name) for base in cls.__mro__[1:])
    return next((one.metadata[_METADATA] for one in fields if one and one.metadata), None)


@cache  # get_type_hints would evaluate those of every base again for every class
def _hints(cls: type) -> Mapping[str, Any]:
    return inspect.get_annotations(cls, eval_str=True)


def without_effect(specs: Mapping[str, Option], values: Mapping[str, object]) -> list[str]:
    """Return the options that have no effect beside values of others, given as text."""
    return [name for name, spec in specs.items() if any(spec.unmet(values))]


def settled(config: type, **values: object) -> dict[str, Any]:
    """Return these values of a configuration, and the defaults of options without effect then."""
    specs = options(config)
    return {**{name: specs[name].default for name in without_effect(specs, values)}, **values}


def is_set(config: object, name: str) -> bool:
    """Whether the value of an option is neither its default nor none."""
    return getattr(config, name) not in (options(type(config))[name].default, "none")


def yaml_values(config: object) -> dict[str, object]:
    """Return the value of every option as YAML has it."""
    specs = options(type(config))
    return {name: spec.to_yaml_value(getattr(config, name)) for name, spec in specs.items()}


def convert_fields(config: object) -> list[str]:
    """Convert every option of a frozen dataclass, in place; return the errors."""
    problems = []
    for name, spec in options(type(config)).items():
        try:
            object.__setattr__(config, name, spec.convert(getattr(config, name)))
        except ValueError as error:
            problems.append(f"{name} {error}")
    return problems


def _strip_none(hint: Any) -> tuple[type, bool]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = typing.get_args(hint) if is_union else ()
    if len(parts) == 2 and types.NoneType in parts:
        return parts[parts[0] is types.NoneType], True
    return hint, False


def to_flag(name: str) -> str:
    """Return the flag of a field or YAML key: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")
