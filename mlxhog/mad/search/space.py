"""A search space: the layers of each slot and the budget of a candidate; and its YAML form.

    space:
      depth: 4                        # flat layers, or [4, 8]
      template: alternate             # mixer, channel, mixer, channel | free: any layer anywhere
      mixers: [mh-attention, mlstm, {type: gla, heads: [4, 8]}]
      channels: [swiglu, mlp]
      defaults: {mlstm: {heads: 4}}   # numbers of a type; those of an item have priority
      max_count: {mh-attention: 1}    # of a type in one candidate
      budget: {params: 700_000, state: 16384, length: 256}
      start: ["mlstm swiglu mlstm swiglu"]   # the first candidates of an evolution
      dim: 128                        # without it that of the suite
      position: none                  # none | learned | sincos
      suite: lite

If a number of a layer is a list, each of its values is a choice. In an alternating space, [4, 8]
are the even depths from 4 to 8. `before: canon` puts that layer before each of the others; depth
counts both, so [4, 12] are then 4, 8 and 12.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from mlxhog.base import plain_yaml, reading, typed
from mlxhog.base.quantities import parse_count
from mlxhog.config.options import convert_fields, option
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.suites import SUITES
from mlxhog.models.mad.config import POSITIONS
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import at_width, known, make
from mlxhog.models.mad.sequence import parse

BOUNDS = ("params", "state", "length")
"""Keys of a budget: most parameters of a candidate's layers (`run.params`), most numbers kept per
sequence, and the tokens after which these are counted. Without a length it is the longest row of
the suite; it matters for caches that grow, such as that of attention."""
DEEPEST = 256
MOST_CHOICES = 4096
EXAMPLES = {"mixer": "[mlstm, mh-attention]", "channel": "[swiglu, mlp]"}

Count = int | str
"""A count, or its text such as 700_000."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The sequences of layers that are candidates: the keys below `space:`, by their types.

    Raises:
        ConfigError: a value is not possible.
    """

    depth: Count | tuple[Count, ...]
    template: str = option("alternate", "layers of a slot", choices=("alternate", "free"))
    mixers: tuple[str | Mapping[str, Any], ...] = ()
    channels: tuple[str | Mapping[str, Any], ...] = ()
    before: str | None = None
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_count: Mapping[str, Count] = field(default_factory=dict)
    budget: Mapping[str, Count | None] = field(default_factory=dict)
    start: tuple[str, ...] = ()
    dim: int | None = option(None, "width; None is the suite's", low=1)
    position: str = option("none", "positional embedding", choices=POSITIONS)
    suite: str | None = option(None, "the suite of a search without one", choices=tuple(SUITES))

    def __post_init__(self) -> None:
        """Convert and check every key."""
        if problems := convert_fields(self):
            raise ConfigError("\n".join(problems))
        _keys("defaults", self.defaults, known())
        kinds = {"mixer": self.mixers, "channel": self.channels}
        needed = ["mixer"]
        if self.template == "alternate" and self.depths[-1] > 1:
            needed.append("channel")
        for kind in needed:
            if not kinds[kind]:
                raise ConfigError(f"space has no {kind}s; list some, such as {EXAMPLES[kind]}")
        _keys("max_count", self.max_count, [layer.name for layer in self.layers])
        _keys("budget", self.budget, BOUNDS)
        _ = self.counts, self.bounds, self.starts

    @cached_property
    def counts(self) -> dict[str, int]:
        """Name of a layer -> its largest number in one candidate, with any numbers."""
        return {name: _count(f"max_count of {name}", n) for name, n in self.max_count.items()}

    @cached_property
    def bounds(self) -> dict[str, int]:
        """Bounds of one candidate, see `BOUNDS`."""
        budget = {name: n for name, n in self.budget.items() if n is not None}
        return {name: _count(f"budget.{name}", n) for name, n in budget.items()}

    @cached_property
    def starts(self) -> list[tuple[Layer, ...]]:
        """The first candidates of an evolution."""
        return [parse(line, self.defaults) for line in self.start]

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Numbers of layers, rising."""
        step = (2 if self.template == "alternate" else 1) * (1 if self.before is None else 2)
        written = self.depth if isinstance(self.depth, tuple) else (self.depth,)
        numbers = [_count("depth", number, DEEPEST) for number in written]
        if not numbers or numbers != sorted(set(numbers)):
            raise ConfigError(f"depth is {list(written)}; give rising numbers, such as [4, 8]")
        if len(numbers) == 2:
            numbers = [*range(numbers[0], numbers[1] + 1, step)]
        if self.before is not None and (odd := [depth for depth in numbers if depth % 2]):
            raise ConfigError(
                f"depth is {odd[0]}; with a layer before each other, give an even depth"
            )
        return tuple(numbers)

    @cached_property
    def block(self) -> list[tuple[Layer, ...]]:
        """The choices of every layer of the part that repeats."""
        mixers = _choices("mixer", self.mixers, self.defaults)
        channels = _choices("channel", self.channels, self.defaults)
        own = [mixers + channels] if self.template == "free" else [mixers, channels]
        if self.before is None:
            return own
        before = parse(self.before, self.defaults)
        if len(before) != 1:
            raise ConfigError(f"before is {self.before!r}; give one layer, such as canon")
        return [choices for slot in own for choices in (before, slot)]

    def block_at(self, d: int) -> list[tuple[Layer, ...]]:
        """Return the block with the numbers of its layers that follow from width d."""
        return [tuple(dict.fromkeys(at_width(choices, d))) for choices in self.block]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every choice of some slot, once."""
        return tuple(dict.fromkeys(itertools.chain(*self.block)))


def read_space(path: str | Path) -> dict[str, Any]:
    """Return the keys below `space:` of a YAML file, or of one that ships with the package.

    Raises:
        ConfigError: the file cannot be read, or one of its keys or values is not possible.
    """
    files = resources.files("mlxhog.models").iterdir()
    shipped = {
        file.name.removesuffix(".yaml"): file for file in files if file.name.startswith("space-")
    }
    try:
        file = shipped.get(str(path))
        text = reading.read_text(Path(path)) if file is None else file.read_text("utf-8")
        data = plain_yaml.loads(text)
    except FileNotFoundError:
        names = ", ".join(sorted(shipped))
        raise ConfigError(
            f"no space {str(path)!r} (a YAML file, or {names} of the package)"
            f"{did_you_mean(path, shipped)}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the space {path}: {error}; give a YAML file") from error
    try:
        if isinstance(data, Mapping) and "model" in data and "space" not in data:
            raise ConfigError(
                "the file is one architecture, not a space; score it with "
                f"mlxhog mad bench --config {path}"
            )
        top = _keys("the file", data, ("space", "version"))
        if top.get("version", 1) != 1:
            raise ConfigError(f"version is {top['version']!r}; this program reads version 1")
        to_space(top.get("space"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return dict(top["space"])


def to_space(data: object) -> Space:
    """Read a space from the keys below `space:`.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not possible.
    """
    keys = _keys("space", data, [one.name for one in fields(Space)])
    try:
        return typed.read(Space, {name: v for name, v in keys.items() if v is not None})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"space: {error}") from None


def _keys(name: str, data: object, known_keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        got = "missing" if data is None else f"{data!r}"
        raise ConfigError(f"{name} is {got}; write keys below it, such as 'space:' or 'depth: 4'")
    for key in data:
        if key not in known_keys:
            hint = did_you_mean(key, known_keys) or f"; known are {', '.join(known_keys)}"
            raise ConfigError(f"{name} has no {key!r}{hint}")
    return data


def _count(name: str, value: Count, most: float = math.inf) -> int:
    try:
        number = parse_count(value)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        up_to = "" if most == math.inf else f", {most} at most"
        raise ConfigError(f"{name} is {value!r}; give a whole number above 0{up_to}")
    return number


def _choices(
    kind: str,
    items: Iterable[str | Mapping[str, Any]],
    defaults: Mapping[str, Mapping[str, Any]],
) -> tuple[Layer, ...]:
    """The layers of a list of names, texts and mappings; each number of a list makes a layer."""
    choices: list[Layer] = []
    for item in items:
        for layer in _spread(item, defaults):
            if layer.kind != kind:
                raise ConfigError(
                    f"{layer.name} is a {layer.kind}; list it under {layer.kind}s, not {kind}s"
                )
            if layer in choices:
                raise ConfigError(f"{kind}s has {item!r} twice; keep one")
            choices.append(layer)
    return tuple(choices)


def _spread(
    item: str | Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> Sequence[Layer]:
    if isinstance(item, str):
        return parse(item, defaults)
    if "type" not in item:
        raise ConfigError(f"{item!r} is not a layer; write a name, or {{type: mlstm, heads: 4}}")
    name = str(item["type"])
    numbers = {**defaults.get(name, {}), **item}
    del numbers["type"]
    values = [value if isinstance(value, list) else [value] for value in numbers.values()]
    if not 1 <= (count := math.prod(map(len, values))) <= MOST_CHOICES:
        raise ConfigError(f"{item!r} stands for {count} layers; list 1 to {MOST_CHOICES}")
    return [
        make(name, dict(zip(numbers, chosen, strict=True))) for chosen in itertools.product(*values)
    ]
