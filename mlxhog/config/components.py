"""Components chosen by name: layers, tasks, schedules, optimizers, strategies and adapters.

A component is a class that owns its hyperparameters (in `mlxhog/strategies`, `mlxhog/optim`, or a
file of the user's own):

    @dataclass(frozen=True, kw_only=True)
    class SSP(AsyncPS):
        name: ClassVar[str] = "ssp"
        slack: int = option(3, "steps that a worker may be ahead", unit="steps", low=0)

Its text has the hyperparameters that are not the defaults:

    ssp    ssp(slack=2)    {name: ssp, slack: 2}    ssp(slack=2, staleness_lr=linear:0.1)

A comma separates hyperparameters only before NAME=, so `staleness=speed:1,4` is one. Flat names
(`--slack 2`, `slack: 2`) are shorthand for hyperparameters of the component that a run has; a name
that is unclear alone has a longer flat name (`backoff(beta=0.5)`, `--backoff-beta 0.5`).

A registry has the components of one kind. The module that registers those of the package is
imported at the first look-up; `--plugin` loads files of the user's own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import Field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from mlxhog.config.options import Option, convert_fields, options, yaml_values
from mlxhog.errors import ConfigError, did_you_mean, nearest, shown

NAME = re.compile(r"[A-Za-z][\w-]*")
_TEXT = re.compile(rf"({NAME.pattern})\s*(?:\((.*)\))?", re.DOTALL)  # of a stripped text
_FORMS = "a name, a name with hyperparameters such as ssp(slack=2), or {name: ssp, slack: 2}"
_COMMA = re.compile(r",\s*(?=[A-Za-z_]\w*\s*=)")

T = TypeVar("T")
"""The type of the entries of a registry, such as classes of components."""


class UnknownComponent(ConfigError):
    """No component of a kind, such as "layer", has this name; the message ends at ";"."""


class Registry(Generic[T]):
    """Components of one kind by name: those of the package, and those of users' files."""

    def __init__(self, title: str, module: str, form: str, *, plural: str = "") -> None:
        """Name the kind, and the module that registers those of the package.

        `form` describes one in a user's file, for errors.
        """
        self.title, self.form, self.plural = title, form, plural or f"{title}s"
        self._module = module
        self._by_name: dict[str, T] = {}
        self._check: Callable[[T], object] | None = None

    def checked_by(self, check: Callable[[T], object]) -> Callable[[T], object]:
        """Let a function refuse wrong entries by a `ConfigError`; also as a decorator."""
        self._check = check
        return check

    def register(self, component: T) -> T:
        """Add a component under its name; also as a decorator.

        Raises:
            ConfigError: its name is illegal or taken, or `checked_by` refuses it.
        """
        name = getattr(component, "name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f"its name is {shown(name)}; use a letter and then letters, digits, '-' or '_'"
            )
        if self._check is not None:
            self._check(component)
        if self._by_name.setdefault(name, component) is not component:
            article = "an" if self.title[0] in "aeiou" else "a"
            raise ConfigError(
                f"there is {article} {self.title} {name!r} already; give yours another name"
            )
        return component

    def forget(self, modules: Collection[str]) -> None:
        """Remove the components that some modules define; objects of them stay valid."""
        for name, component in list(self._by_name.items()):
            if getattr(component, "__module__", None) in modules:
                del self._by_name[name]

    def known(self) -> Mapping[str, T]:
        """Return every component by its name, in the order of registration."""
        importlib.import_module(self._module)
        return MappingProxyType(self._by_name)

    def find(self, name: str) -> T:
        """Return the component of a name.

        Raises:
            UnknownComponent: no component has that name; the error suggests the nearest one.
        """
        known = self.known()
        if name not in known:
            raise self.unknown(name, known, ", ".join(known))
        return known[name]

    def unknown(self, name: str, names: Iterable[str], listed: str) -> UnknownComponent:
        """Return the error for a name; it suggests the nearest one, or lists all."""
        near = nearest(name, names)
        hint = f"did you mean {near!r}?" if near else f"known are {listed}."
        return UnknownComponent(
            f"no {self.title} {shown(name)}; {hint} {self.plural.capitalize()} of your own need "
            "the file that defines them: --plugin FILE"
        )


Constraints = tuple[tuple[object, str, str], ...]
"""Whether a constraint is broken, its option, and the message with the remedy; for each."""


def broken(constraints: Constraints) -> Iterator[tuple[str, str]]:
    """Yield option and sentence of each broken constraint."""
    return ((name, sentence) for is_broken, name, sentence in constraints if is_broken)


class Component:
    """The base of a run's components: a frozen dataclass; its `option` fields are hyperparameters.

    A plain field such as `depth: int = 3` is a hyperparameter, too, without limits and help.
    """

    name: ClassVar[str]  # in flags and files; a class that defines none itself cannot be chosen
    about: ClassVar[str]  # one line for help and documentation
    registry: ClassVar[ComponentRegistry]
    takes_plain_fields: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Convert and check every hyperparameter.

        Raises:
            ConfigError: naming every invalid value and every broken constraint.
        """
        broken = (f"{name}: {problem}" for name, problem in self.broken("constraints"))
        if problems := convert_fields(self) or [*broken]:
            raise ConfigError("\n".join(f"{self.name}: {problem}" for problem in problems))

    def constraints(self) -> Constraints:
        """Constraints between its hyperparameters; those of its bases hold, too."""
        return ()

    def run_constraints(self, config: Any) -> Constraints:
        """Constraints between it and other options of a run, a `TrainConfig`; likewise."""
        return ()

    def broken(self, method: str, *config: object) -> Iterator[tuple[str, str]]:
        """Yield option and sentence of each broken constraint of either method.

        Raises:
            ConfigError: one names something that is not there.
        """
        for base in reversed(type(self).__mro__):
            try:
                yield from broken(vars(base).get(method, lambda *_: ())(self, *config))
            except AttributeError as error:
                raise ConfigError(f"{method} of {self.name}: {error}") from error

    @classmethod
    def is_own(cls) -> bool:
        """Whether the class is a user's own, so that no class of the package may replace it."""
        return not cls.__module__.startswith("mlxhog.")

    def __str__(self) -> str:
        """Format it, with the hyperparameters that are not the defaults; `read` reads it back."""
        specs = options(type(self))
        changed = [
            f"{name}={_text(value)}"
            for name, value in yaml_values(self).items()
            if getattr(self, name) != specs[name].default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def to_dict(self) -> dict[str, object]:
        """Return its name and all hyperparameters, as YAML and JSON have them."""
        return {"name": self.name, **yaml_values(self)}


class ComponentRegistry(Registry[type[Component]]):
    """Components that a run chooses by an option, such as `--strategy`."""

    def register(self, component: type[Component]) -> type[Component]:
        """Add a component, also as a decorator.

        Raises:
            ConfigError: as of a `Registry`; or the class is not a frozen dataclass, so its
                hyperparameters would be lost.
        """
        params = vars(component).get("__dataclass_params__")
        forgot = any(isinstance(value, Field) for value in vars(component).values())
        if forgot if params is None else not params.frozen:
            raise ConfigError(
                f"put @dataclass(frozen=True, kw_only=True) above it, as above every {self.title}"
            )
        return super().register(component)

    def read(self, value: object) -> Component:
        """Return a component from its text, a mapping, or itself.

        Raises:
            UnknownComponent: no component has that name.
            ConfigError: it has no such hyperparameter, or one has an invalid value.
        """
        if isinstance(value, Component) and value.registry is self:
            return value
        name, values = self.parts(value)
        return self.make(name, {flat: (one, "") for flat, one in values.items()})

    def make(
        self, component: type[Component] | str, flat_values: Mapping[str, tuple[object, str]]
    ) -> Component:
        """Return a component, given or by its name, with hyperparameters.

        `flat_values` maps a flat name to the value and the prefix of an error about it, or "".

        Raises:
            UnknownComponent: no component has that name.
            ConfigError: every hyperparameter that it lacks, or that has an invalid value.
        """
        cls = self.find(component) if isinstance(component, str) else component
        specs = {spec.flat: spec for spec in options(cls).values()}
        values, wrong = dict[str, object](), list[str]()
        for flat, (value, begin) in flat_values.items():
            try:
                values[specs[flat].name] = specs[flat].convert(value)
            except KeyError:
                wrong.append(f"{begin or self.title}: {self.lacks(cls, flat)}")
            except ValueError as error:
                wrong.append(f"{begin or f'{cls.name}: {specs[flat].name}'} {error}")
        if wrong:
            raise ConfigError("\n".join(wrong))
        return cls(**values)

    def parts(self, value: object) -> tuple[str, dict[str, object]]:
        """Return the name and the hyperparameters of a value, whether or not the component exists.

        If it exists, the hyperparameters have their flat names.

        Raises:
            ConfigError: it has no form above, or lacks a hyperparameter.
        """
        name: object = None
        values: dict[str, object] = {}
        if isinstance(value, Component):
            name, values = value.name, yaml_values(value)
        elif isinstance(value, Mapping):
            values = {str(key): one for key, one in value.items()}
            name = values.pop("name", None)
        elif isinstance(value, str) and (match := _TEXT.fullmatch(value.strip())):
            name, values = match[1], _hyperparameters_in(match[2] or "")
        if not isinstance(name, str):
            raise ConfigError(f"wanted {_FORMS}")
        cls = type(value) if isinstance(value, Component) else self.known().get(name)
        if cls is None:
            return name, values
        flat = {word: one.flat for one in options(cls).values() for word in (one.flat, one.name)}
        for word in values:
            if word not in flat:
                raise ConfigError(self.lacks(cls, word))
        return name, {flat[word]: one for word, one in values.items()}

    @property
    def expected(self) -> str:
        """Description of a legal value."""
        return f"one of {', '.join(self.known())}"

    def hyperparameters(self) -> Mapping[str, Option]:
        """Return every hyperparameter of any component by its flat name.

        It means the same in all components of a kind; its default, here that of the first, may
        differ.
        """
        return _hyperparameters_of(tuple(self.known().values()))

    def lacks(self, component: type[Component], name: str) -> str:
        """Return the error for a hyperparameter that a component lacks; it names those with it."""
        by_name = {one.name: one for one in self.hyperparameters().values()}
        if (known := (by_name | dict(self.hyperparameters())).get(name)) is not None:
            owners = [owner.name for owner in known.owners]
            has = "has" if len(owners) == 1 else "have"
            return f"{component.name} has no {name}; {', '.join(owners)} {has}"
        own = options(component)
        listed = f"; it has {', '.join(own)}" if own else "; it has no hyperparameters"
        return f"{component.name} has no {name}{did_you_mean(name, own) or listed}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _hyperparameters_in(text: str) -> dict[str, object]:
    values: dict[str, object] = {}
    for part in filter(str.strip, _COMMA.split(text)):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ConfigError(f"{name!r} has no value; write name=value")
        if name in values:
            raise ConfigError(f"{name} is given twice; keep one")
        values[name] = value
    return values


@cache
def _hyperparameters_of(components: tuple[type[Component], ...]) -> Mapping[str, Option]:
    owners: dict[str, list[type[Component]]] = {}
    first: dict[str, Option] = {}
    for component in components:
        for spec in options(component).values():
            first.setdefault(spec.flat, spec)
            owners.setdefault(spec.flat, []).append(component)
    return {flat: replace(spec, owners=tuple(owners[flat])) for flat, spec in first.items()}


_OF_BASE = "a dataclass with a name and the base mlxhog."
SCHEDULES = ComponentRegistry(
    "schedule", "mlxhog.optim.schedules", f"{_OF_BASE}optim.schedules.Schedule"
)
OPTIMIZERS = ComponentRegistry("optimizer", "mlxhog.optim", f"{_OF_BASE}optim.OptimizerComponent")
STRATEGIES = ComponentRegistry(
    "strategy", "mlxhog.strategies", f"{_OF_BASE}strategies.Strategy (examples/my_strategy.py)",
    plural="strategies",
)  # fmt: skip
ADAPTERS = ComponentRegistry(
    "adapter", "mlxhog.models.adapters", "a dataclass of the base mlxhog.models.adapters.LoRA"
)
RUN_REGISTRIES = (SCHEDULES, OPTIMIZERS, STRATEGIES, ADAPTERS)
LAYERS: Registry[type[Any]] = Registry(
    "layer", "mlxhog.models.layers",
    "a dataclass with a name and a kind, 'mixer' or 'channel' (examples/my_layer.py)",
)  # fmt: skip
TASKS: Registry[Any] = Registry(
    "task", "mlxhog.mad.tasks", "a dataclass of the base Task (examples/my_task.py)"
)
REGISTRIES = (LAYERS, TASKS, *RUN_REGISTRIES)
"""Everything that a file of the user's own may add to."""
