"""Option values from YAML files and flags, merged over the defaults.

Every value keeps its origin (`conf.yaml:7`, `--lr`), so that an error can point at it, and all
problems are reported together.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlxhog.config import assignments, limits, plain_yaml
from mlxhog.config.limits import shown
from mlxhog.config.options import options
from mlxhog.config.other_names import suggestion
from mlxhog.errors import ConfigError

Config = TypeVar("Config")


@dataclass(frozen=True)
class Given:
    """A value somebody wrote: the name as written (snake_case), the value, and where."""

    name: str
    value: object
    origin: str


def read_yaml(path: Path) -> list[Given]:
    """Return the top-level keys of a YAML file with their line numbers.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping of names to values.
    """
    try:
        text = limits.read_text(path)
        entries = plain_yaml.entries(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except plain_yaml.NotYaml as error:
        where = path if error.line is None else f"{path}:{error.line}"
        raise ConfigError(f"{where}: not YAML: {error.problem}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; a configuration is a YAML file") from error
    if entries is None:
        raise ConfigError(f"{path}: wanted lines such as `lr: 1e-3`")
    return [Given(name, value, f"{path}:{line}") for name, value, line in entries]


def resolve(
    cls: type[Config], layers: Iterable[Iterable[Given]], problems: Iterable[str] = ()
) -> Config:
    """Return `cls` from the layers, later ones winning over earlier ones and the defaults.

    Args:
        cls: a dataclass made of `option` fields.
        layers: values of each source, weakest first.
        problems: what was already found wrong; raised together with what is found here.

    Raises:
        ConfigError: every unknown name, wrong value, repetition and contradiction, one per line.
    """
    found = list(problems)
    chosen: dict[str, Given] = {}
    specs = options(cls)
    for layer in layers:
        for name, given in _layer(cls, layer, found).items():
            adds = specs[name].repeats and name in chosen
            chosen[name] = _added(chosen[name], given) if adds else given
    values = {}
    for name, given in chosen.items():
        try:
            values[name] = specs[name].convert(given.value)
        except ValueError as error:
            label = given.origin if given.origin.startswith("-") else f"{given.origin}: {name}"
            found.append(f"{label} {error}")
    if found:
        raise ConfigError("\n".join(found))
    return cls(**values)


def from_keywords(cls: type[Config], call: str, keywords: Mapping[str, object]) -> Config:
    """Return `cls` from the keyword arguments of a call, such as "generate()".

    Raises:
        ConfigError: every unknown name, with the nearest one, and every wrong value.
    """
    return resolve(cls, [written_in(call, keywords)])


def written_in(call: str, keywords: Mapping[str, object]) -> list[Given]:
    """Return keyword arguments of a call as a layer; a path is its text."""
    return [
        Given(name, os.fspath(value) if isinstance(value, os.PathLike) else value, call)
        for name, value in keywords.items()
    ]


def _layer(cls: type, layer: Iterable[Given], problems: list[str]) -> dict[str, Given]:
    """Return one source's values by option name; append unknown and repeated names."""
    names = _spellings(cls)
    values: dict[str, Given] = {}
    for given in layer:
        name = names.get(given.name)
        if name is None:
            near = suggestion(given.name, names)
            problems.append(f"{given.origin}: no option {shown(given.name)}{near}")
        elif name in values and values[name].name != given.name:
            first = values[name]
            problems.append(
                f"{given.origin}: {given.name!r} and {first.name!r} ({first.origin}) "
                "are the same option; keep one"
            )
        elif name in values and options(cls)[name].repeats and given.origin.startswith("-"):
            values[name] = _added(values[name], given)
        elif name in values and not given.origin.startswith("-"):
            problems.append(f"{given.origin}: {name!r} stands already in {values[name].origin}")
        else:
            values[name] = given
    return values


def _added(earlier: Given, later: Given) -> Given:
    """Both values of an option that repeats, the later one last; `none` leaves the earlier out."""
    if later.value in (None, "none") or earlier.value in (None, "none"):
        return later
    try:
        both = f"{assignments.to_text(earlier.value)}, {assignments.to_text(later.value)}"
    except ValueError:
        return later  # converting it says what is wrong
    return Given(later.name, both, later.origin)


def _spellings(cls: type) -> Mapping[str, str]:
    """Every accepted snake_case spelling, mapped to the option's name."""
    names = {}
    for name, spec in options(cls).items():
        names[name] = name
        names |= dict.fromkeys(spec.aliases, name)
    return names
