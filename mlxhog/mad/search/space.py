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
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from mlxhog.base import plain_yaml, reading
from mlxhog.base.quantities import parse_count
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.suites import SUITES
from mlxhog.models.mad.config import POSITIONS
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import at_width, known, make, to_dict
from mlxhog.models.mad.sequence import canonical, parse

TEMPLATES = ("alternate", "free")


@dataclass(frozen=True, kw_only=True)
class SizeBudget:
    """Bounds of one candidate; None for no bound.

    Attributes:
        params: parameters of its layers, see `run.params`.
        state: numbers kept per sequence.
        length: tokens after which state is counted; None is the longest row of the suite. It
            matters for caches that grow, such as that of attention.
    """

    params: int | None = None
    state: int | None = None
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Space:
    """The sequences of layers that are candidates; every default is resolved.

    Attributes:
        depths: numbers of layers, rising.
        template: "alternate" begins with a mixer and changes kind from layer to layer.
        mixers: choices of a mixer's slot, with all their numbers.
        channels: choices of a channel map's slot.
        before: the layer before each of the others; None for none.
        max_count: name of a layer -> its largest number in one candidate, with any numbers.
        budget: bounds of one candidate.
        start: the first candidates of an evolution.
        dim: width d; None is the suite's.
        position: positional embedding.
        suite: default suite.
    """

    depths: tuple[int, ...]
    template: str = "alternate"
    mixers: tuple[Layer, ...]
    channels: tuple[Layer, ...]
    before: Layer | None = None
    max_count: Mapping[str, int] = field(default_factory=dict)
    budget: SizeBudget = SizeBudget()
    start: tuple[tuple[Layer, ...], ...] = ()
    dim: int | None = None
    position: str = "none"
    suite: str | None = None

    @property
    def block(self) -> list[tuple[Layer, ...]]:
        """The choices of every layer of the part that repeats."""
        free = self.template == "free"
        own = [self.mixers + self.channels] if free else [self.mixers, self.channels]
        if self.before is None:
            return own
        return [choices for slot in own for choices in ((self.before,), slot)]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every choice of some slot, once."""
        return tuple(dict.fromkeys(itertools.chain(*self.block)))

    def slots(self, depth: int) -> list[tuple[Layer, ...]]:
        """Return the choices of every layer of a candidate of that depth."""
        return list(itertools.islice(itertools.cycle(self.block), depth))

    def at_width(self, d: int) -> Space:
        """Return the space with the numbers of its layers that follow from width d."""
        return replace(
            self,
            mixers=tuple(dict.fromkeys(at_width(self.mixers, d))),
            channels=tuple(dict.fromkeys(at_width(self.channels, d))),
            before=None if self.before is None else at_width((self.before,), d)[0],
            start=tuple(at_width(layers, d) for layers in self.start),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that YAML and JSON take; equal spaces have equal ones."""
        return {
            "depth": list(self.depths),
            "template": self.template,
            "mixers": [to_dict(layer) for layer in self.mixers],
            "channels": [to_dict(layer) for layer in self.channels],
            **({} if self.before is None else {"before": canonical((self.before,))}),
            "max_count": dict(sorted(self.max_count.items())),
            "budget": asdict(self.budget),
            "start": [canonical(layers) for layers in self.start],
            "dim": self.dim,
            "position": self.position,
            "suite": self.suite,
        }


KEYS = (
    "depth", "template", "mixers", "channels", "before", "defaults", "max_count", "budget",
    "start", "dim", "position", "suite",
)  # fmt: skip
DEEPEST = 256
MOST_CHOICES = 4096
EXAMPLES = {"mixer": "[mlstm, mh-attention]", "channel": "[swiglu, mlp]"}


def read_space(path: str | Path) -> Space:
    """Read a space from a YAML file, or one that ships with the package, such as "space-small".

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
    except plain_yaml.NotYaml as error:
        raise ConfigError(f"the space {path} cannot be parsed: {error}; correct it") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the space {path}: {error}; give a YAML file") from error
    try:
        if isinstance(data, Mapping) and "model" in data and "space" not in data:
            raise ConfigError(
                "the file is one architecture, not a space; score it with "
                f"mlxhog mad bench --config {path}"
            )
        if data is None:
            raise ConfigError("the file is empty; write keys below 'space:', such as 'depth: 4'")
        top = _mapping("the file", data, ("space", "version"))
        if top.get("version", 1) != 1:
            raise ConfigError(f"version is {top['version']!r}; this program reads version 1")
        return to_space(top.get("space"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_space(data: object) -> Space:
    """Read a space from the keys below `space:`, as `Space.to_dict` returns them.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not possible.
    """
    keys = _mapping("space", data, KEYS)
    if "depth" not in keys:
        raise ConfigError("space has no depth; add one, such as 'depth: 4'")
    defaults = _defaults(keys.get("defaults") or {})
    template = _word("template", keys.get("template", TEMPLATES[0]), TEMPLATES)
    before = _before(keys.get("before"), defaults)
    block = (2 if template == "alternate" else 1) * (1 if before is None else 2)
    depths = _depths(keys["depth"], step=block)
    if before is not None and (odd := [depth for depth in depths if depth % 2]):
        raise ConfigError(f"depth is {odd[0]}; with a layer before each other, give an even depth")
    mixers = _choices("mixer", keys.get("mixers") or [], defaults)
    channels = _choices("channel", keys.get("channels") or [], defaults)
    for kind, choices, needed in (
        ("mixer", mixers, True),
        ("channel", channels, template == "alternate" and depths[-1] > 1),
    ):
        if needed and not choices:
            raise ConfigError(f"space has no {kind}s; list some, such as {EXAMPLES[kind]}")
    return Space(
        depths=depths,
        template=template,
        mixers=mixers,
        channels=channels,
        before=before,
        max_count=_max_count(keys.get("max_count") or {}, (*mixers, *channels)),
        budget=_budget(keys.get("budget") or {}),
        start=_start(keys.get("start") or [], defaults),
        dim=None if keys.get("dim") is None else _count("dim", keys["dim"]),
        position=_word("position", keys.get("position", POSITIONS[0]), POSITIONS),
        suite=None if keys.get("suite") is None else _word("suite", keys["suite"], tuple(SUITES)),
    )


def _mapping(name: str, data: object, known_keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        got = "missing" if data is None else f"{data!r}"
        raise ConfigError(f"{name} is {got}; write keys below it, such as '{KEYS[0]}: 4'")
    for key in data:
        if key not in known_keys:
            hint = did_you_mean(key, known_keys) or f"; known are {', '.join(known_keys)}"
            raise ConfigError(f"{name} has no {key!r}{hint}")
    return data


def _word(name: str, value: object, words: Sequence[str]) -> str:
    if value not in words:
        hint = did_you_mean(value, words)
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(words)}{hint}")
    return str(value)


def _count(name: str, value: object) -> int:
    try:
        number = parse_count(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name} is {value!r}; give a whole number above 0")
    return number


def _depth(value: object) -> int:
    depth = _count("depth", value)
    if depth > DEEPEST:
        raise ConfigError(f"depth is {depth}; candidates have {DEEPEST} layers at most")
    return depth


def _depths(value: object, *, step: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        return (_depth(value),)
    numbers = [_depth(one) for one in value]
    if not numbers or numbers != sorted(set(numbers)):
        raise ConfigError(f"depth is {value}; give rising numbers, such as [4, 8]")
    return tuple(range(numbers[0], numbers[-1] + 1, step)) if len(numbers) == 2 else tuple(numbers)


def _defaults(value: object) -> dict[str, dict[str, object]]:
    defaults = {}
    for name, numbers in _mapping("defaults", value, known()).items():
        if not isinstance(numbers, Mapping):
            raise ConfigError(f"defaults of {name} are {numbers!r}; write {{field: number}}")
        defaults[name] = dict(numbers)
    return defaults


def _before(value: object, defaults: Mapping[str, Mapping[str, object]]) -> Layer | None:
    """The layer before each of the others."""
    if value is None:
        return None
    layers = parse(value, defaults) if isinstance(value, str) else ()
    if len(layers) != 1:
        raise ConfigError(f"before is {value!r}; give one layer, such as canon")
    return layers[0]


def _choices(
    kind: str, items: object, defaults: Mapping[str, Mapping[str, object]]
) -> tuple[Layer, ...]:
    """The layers of a list of names, texts and mappings; each number of a list makes a layer."""
    if not isinstance(items, list):
        raise ConfigError(f"{kind}s is {items!r}; give a list such as {EXAMPLES[kind]}")
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


def _spread(item: object, defaults: Mapping[str, Mapping[str, object]]) -> list[Layer]:
    if isinstance(item, str) and "(" in item:
        return list(parse(item, defaults))
    if isinstance(item, str):
        item = {"type": item}
    if not isinstance(item, Mapping) or "type" not in item:
        raise ConfigError(f"{item!r} is not a layer; write a name, or {{type: mlstm, heads: 4}}")
    name = str(item["type"])
    numbers = {**defaults.get(name, {}), **item}
    del numbers["type"]
    values = [value if isinstance(value, list) else [value] for value in numbers.values()]
    if [] in values:
        key = list(numbers)[values.index([])]
        raise ConfigError(f"{name}.{key} is an empty list; give the numbers to choose from")
    if (count := math.prod(map(len, values))) > MOST_CHOICES:
        raise ConfigError(f"{name} has {count} combinations of its numbers; {MOST_CHOICES} at most")
    return [
        make(name, dict(zip(numbers, chosen, strict=True))) for chosen in itertools.product(*values)
    ]


def _max_count(value: object, choices: Sequence[Layer]) -> dict[str, int]:
    names = tuple(dict.fromkeys(layer.name for layer in choices))
    counts = _mapping("max_count", value, names)
    return {name: _count(f"max_count of {name}", count) for name, count in counts.items()}


def _budget(value: object) -> SizeBudget:
    keys = _mapping("budget", value, ("params", "state", "length"))
    bounds = {name: bound for name, bound in keys.items() if bound is not None}
    return SizeBudget(**{name: _count(f"budget.{name}", bound) for name, bound in bounds.items()})


def _start(
    value: object, defaults: Mapping[str, Mapping[str, object]]
) -> tuple[tuple[Layer, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ConfigError(
            f'start is {value!r}; give a list of sequences, such as ["mlstm swiglu mlstm swiglu"]'
        )
    return tuple(parse(line, defaults) for line in value)
