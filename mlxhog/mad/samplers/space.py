"""A search space: the layers of each slot and the budget of a candidate, as YAML has them.

    space:
      depth: 4                        # flat layers, or [4, 8]
      template: alternate             # mixer, channel, mixer, channel | free: any layer anywhere
      mixers: [mh-attention, mlstm, gla(h4), {type: gla, heads: 8}]
      channels: [swiglu, mlp]
      max_count: {mh-attention: 1}    # of a type in one candidate
      budget: {params: 700_000, state: 16384}
      start: ["mlstm swiglu mlstm swiglu"]   # the first candidates of an evolution
      dim: 128                        # without it that of the suite
      position: none                  # none | learned | sincos
      suite: lite                     # or lm:60s

In an alternating space, [4, 8] are the even depths from 4 to 8. `before: canon` puts that layer
before each of the others; depth counts both, so [4, 12] are then 4, 8 and 12.

All sequences of a space have numbers: shallow ones first, then by the order of choices. Those above
a bound (of a count, of parameters, of state) are rejected. A small space with bounds is listed; in
a large one candidates are drawn until one is within the bounds, and their number is unknown.
"""

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from mlxhog.base import plain_yaml, typed
from mlxhog.base.quantities import parse_count
from mlxhog.config.options import convert_fields, option
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.run import params, state
from mlxhog.mad.suites import suite
from mlxhog.models.layers import at_width
from mlxhog.models.layers.layer import Layer
from mlxhog.models.mad.config import POSITIONS
from mlxhog.models.mad.sequence import canonical, parse, read_layers

BOUNDS = ("params", "state")
"""Keys of a budget: most parameters of a candidate's layers (`run.params`), and most numbers kept
per sequence, after the longest row of the suite."""
MAX_DEPTH = 256
MAX_LISTED = 50_000
"""Most sequences of a space with bounds that are all tried, in less than a second."""
MAX_DRAWS = 10_000
"""Most draws in a row above a bound of a space that is not listed."""

Layers = tuple[Layer, ...]
Count = int | str
"""A count, or its text such as 700_000."""
Items = tuple[str | Mapping[str, Any], ...]
"""Layers as lines, or one by its type and hyperparameters, as an architecture's file has them."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The keys below `space:`, by their types; see the example above.

    Raises:
        ConfigError: a value has another type, or is not one of the possible words.
    """

    depth: Count | tuple[Count, ...]
    template: str = option("alternate", "layers of a slot", choices=("alternate", "free"))
    mixers: Items = ()
    channels: Items = ()
    before: str | None = None
    max_count: Mapping[str, Count] = field(default_factory=dict)
    budget: Mapping[str, Count] = field(default_factory=dict)
    start: tuple[str, ...] = ()
    dim: int | None = option(None, "width; None is the suite's", low=1)
    position: str = option("none", "positional embedding", choices=POSITIONS)
    suite: str | None = option(None, "the suite of a search without one", reads=suite)

    def __post_init__(self) -> None:
        """Convert and check the values."""
        if problems := convert_fields(self):
            raise ConfigError("\n".join(problems))

    def block(self) -> list[Layers]:
        """Return the choices of every layer of the part that repeats.

        Raises:
            ConfigError: a layer is unknown, or of another kind.
        """
        slots = [self._choices("mixer", self.mixers), self._choices("channel", self.channels)]
        if self.template == "free":
            slots = [slots[0] + slots[1]]
        if self.before is None:
            return slots
        before = parse(self.before)
        if len(before) != 1:
            raise ConfigError(f"before is {self.before!r}; give one layer, such as canon")
        return [choices for slot in slots for choices in (before, slot)]

    def starts(self) -> list[Layers]:
        """Return the first candidates of an evolution."""
        return [parse(line) for line in self.start]

    def depths(self) -> tuple[int, ...]:
        """Return the numbers of layers, rising; ConfigError if they are not possible."""
        step = (2 if self.template == "alternate" else 1) * (1 if self.before is None else 2)
        written = self.depth if isinstance(self.depth, tuple) else (self.depth,)
        numbers = [_count("depth", number, MAX_DEPTH) for number in written]
        if not numbers or numbers != sorted(set(numbers)):
            raise ConfigError(f"depth is {list(written)}; give rising numbers, such as [4, 8]")
        if len(numbers) == 2:
            numbers = [*range(numbers[0], numbers[1] + 1, step)]
        if self.before is not None and (odd := [depth for depth in numbers if depth % 2]):
            raise ConfigError(
                f"depth is {odd[0]}; with a layer before each other, give an even depth"
            )
        return tuple(numbers)

    def _choices(self, kind: str, items: Items) -> Layers:
        layers = read_layers([*items], f"{kind}s")
        for layer in layers:
            if layer.kind != kind:
                raise ConfigError(
                    f"{layer.name} is a {layer.kind}; list it under {layer.kind}s, not {kind}s"
                )
        return layers


def read_space(path: str | Path) -> dict[str, Any]:
    """Return the keys below `space:` of a YAML file, or of one that ships with the package.

    Raises:
        ConfigError: the file cannot be read, or one of its keys or values is not possible.
    """
    files = resources.files("mlxhog.models").iterdir()
    shipped = {
        file.name.removesuffix(".yaml"): file for file in files if file.name.startswith("space-")
    }
    file = Path(str(shipped.get(str(path), path)))
    if not file.exists():
        names = ", ".join(sorted(shipped))
        raise ConfigError(
            f"no space {str(path)!r} (a YAML file, or {names} of the package)"
            f"{did_you_mean(path, shipped)}"
        )
    data = plain_yaml.read_fields(file, "the space")
    try:
        keys: Any = _keys("the file", data, ("space",)).get("space")
        to_space(keys).block()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return dict(keys)


def to_space(data: object) -> Space:
    """Read a space from the keys below `space:`.

    Raises:
        ConfigError: a key is unknown or missing, or a value has another type.
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


# -- candidates ------------------------------------------------------------------------------------


class CandidateList:
    """Architectures as candidates: their number `count`, and the `first` one."""

    def __init__(self, architectures: Sequence[Layers]) -> None:
        self.numbers = len(architectures)
        self.count: int | None = self.numbers
        self.candidate, self.first = architectures.__getitem__, architectures[0]


class CandidateSet:
    """The sequences of a space within its counts and its budget at width d, in a fixed order.

    State is counted after `length` tokens.

    Raises:
        ConfigError: a value of the space is not possible, a layer cannot be built at this width,
            the space has no candidate, or a sequence of `start` is not in it.
    """

    def __init__(self, space: Space, d: int, length: int) -> None:
        # the choices of every layer of the part that repeats, at this width
        self.block = [tuple(dict.fromkeys(at_width(choices, d))) for choices in space.block()]
        self.depths, self._d = space.depths(), d  # numbers of layers, rising
        # the first candidates of an evolution
        self.starts = [at_width(layers, d) for layers in space.starts()]
        if not all(self.slots(self.depths[-1])):
            lacks = " and no ".join(n for n in ("mixers", "channels") if not getattr(space, n))
            raise ConfigError(
                f"space has no {lacks}; list some, such as mixers: [mlstm, mh-attention] and "
                "channels: [swiglu, mlp]"
            )
        layers = dict.fromkeys(itertools.chain(*self.block))
        for layer in layers:
            try:
                layer.check(d)
            except ConfigError as error:
                raise ConfigError(f"{layer.name} at width {d}: {error}") from error
        most = _keys("max_count", space.max_count, [layer.name for layer in layers])
        self._most = {name: _count(f"max_count of {name}", n) for name, n in most.items()}
        budget = _keys("budget", space.budget, BOUNDS).items()
        bounds = {name: _count(f"budget.{name}", n) for name, n in budget}
        self._length, self._bounds = length, [bounds.get(name, math.inf) for name in BOUNDS]
        self._sizes = {depth: math.prod(map(len, self.slots(depth))) for depth in self.depths}
        total, self._listed = sum(self._sizes.values()), list[Layers]()
        self.numbers = total  # `candidate` has the numbers from 0 on
        self.count: int | None = total  # of candidates; None for a large space with bounds
        tries: Iterable[int] = range(total)
        if self._most or bounds:
            self.count = None
            if total <= MAX_LISTED:
                self._listed = [*filter(None, map(self.candidate, tries))]
                self.count = self.numbers = len(self._listed)
                tries = range(self.numbers)
            else:
                rng = random.Random(0)
                tries = (rng.randrange(total) for _ in range(MAX_DRAWS))
        first = next(filter(None, map(self.candidate, tries)), None)
        if first is None:
            of = "" if total <= MAX_LISTED else f" in {MAX_DRAWS:,} draws"
            raise ConfigError(
                f"no candidate is within max_count and budget{of}; raise a bound, or list other "
                "layers; mlxhog mad show prints the parameters and the state of a sequence"
            )
        self.first = first  # a candidate, the first one of a space that is listed
        for start in self.starts:
            if start not in self:
                raise ConfigError(f"start has {canonical(start)!r}, which is not in the space")

    def slots(self, depth: int) -> list[Layers]:
        """Return the choices of every layer of a candidate of that depth."""
        return list(itertools.islice(itertools.cycle(self.block), depth))

    def candidate(self, number: int) -> Layers | None:
        """Return the candidate of a number; None if that sequence is above a bound."""
        if self._listed:
            return self._listed[number]
        sizes = iter(self._sizes.items())
        depth, size = next(sizes)
        while number >= size:
            number -= size
            depth, size = next(sizes)
        chosen = []
        for slot in reversed(self.slots(depth)):
            number, which = divmod(number, len(slot))
            chosen.append(slot[which])
        layers = tuple(reversed(chosen))
        return layers if self._is_within(layers) else None

    def __contains__(self, layers: Layers) -> bool:
        """Whether a sequence is a candidate."""
        return (
            len(layers) in self.depths
            and all(map(lambda one, slot: one in slot, layers, self.slots(len(layers))))
            and self._is_within(layers)
        )

    def _is_within(self, layers: Layers) -> bool:
        names = [layer.name for layer in layers]
        if any(names.count(name) > most for name, most in self._most.items()):
            return False
        sizes = (_sizes(layer, self._d, self._length) for layer in layers)
        return all(
            sum(own) <= bound
            for bound, own in zip(self._bounds, zip(*sizes, strict=True), strict=True)
        )


@lru_cache(maxsize=4096)  # a space has few layers, and a sampler draws each many times
def _sizes(layer: Layer, d: int, length: int) -> tuple[int, int]:
    return params([layer], d), state([layer], d, length)
