"""One choice from several sources: names and numbers of a YAML file, of flags, of a program.

A source names a choice, gives numbers of it, or both; a number stands in the parentheses after the
name, or alone under its flat name:

    strategy: {name: ssp, slack: 2}       slack: 2        --strategy "ssp(slack=2)"       --slack 2

A stronger source that names the same choice changes the numbers that it gives. One that names
another choice starts from the defaults of that choice. If no source names a choice, the default
counts; if the default is open ("auto"), the first choice that has all given numbers.

A number that the choice does not have is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlxhog.config.choices import Choice, Kind, UnknownChoice
from mlxhog.config.options import Option, options
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.config.sources import Assignment


@dataclass
class Selection:
    """The sources of one choice, weakest first.

    Attributes:
        option: of the configuration.
        kind: of the choice.
    """

    option: Option
    kind: Kind
    _named: Assignment | None = None
    _name: str | None = None
    _inside: dict[str, object] = field(default_factory=dict)
    _flat: dict[str, Assignment] = field(default_factory=dict)

    def name(self, written: Assignment) -> None:
        """Add a name, maybe with numbers, from a stronger source than all before."""
        self._named = written
        if self.option.optional and written.value in (None, self.option.none):
            self._name, self._inside, self._flat = None, {}, {}
            return
        try:
            name, numbers = self.kind.parts(written.value)
        except ConfigError as error:
            raise ConfigError(f"{written.label} {error}") from error
        if self._name not in (None, name):
            self._inside, self._flat = {}, {}
        if name in self.kind.known():
            own = options(self.kind.find(name)).values()
            flat = {spec.flat: spec.name for spec in own}
            numbers = {flat.get(number, number): value for number, value in numbers.items()}
            for spec in own:
                if spec.name in numbers:  # which is the stronger one
                    self._flat.pop(spec.flat, None)
        self._name = name
        self._inside |= numbers

    def number(self, written: Assignment) -> None:
        """Add a number by its flat name; others than numbers of this kind are ignored."""
        if written.name in self.kind.numbers():
            self._flat[written.name] = written

    @property
    def is_given(self) -> bool:
        """Whether a source gives a name or a number."""
        return self._named is not None or bool(self._flat)

    def choice(self) -> Choice | None:
        """Return the choice of all sources together; None is open.

        Raises:
            UnknownChoice: no choice has that name.
            ConfigError: every number that the choice lacks, or that has a wrong value.
        """
        choice = self._class()
        if choice is None:
            return None
        own = {spec.flat: spec for spec in options(choice).values()}
        values, wrong = dict(self._inside), []
        for flat, written in self._flat.items():
            if flat in own:
                try:
                    values[own[flat].name] = own[flat].convert(written.value)
                except ValueError as error:
                    wrong.append(f"{written.label} {error}")
            else:
                wrong.append(f"{written.label}: {self.kind.lacks(choice, flat)}")
        if not wrong:
            try:
                return self.kind.make(choice, values)
            except ConfigError as error:
                prefix = "" if self._named is None else f"{self._named.label}: "
                wrong.append(f"{prefix}{error}")
        raise ConfigError("\n".join(wrong))

    def _class(self) -> type[Choice] | None:
        """The choice of the name, the default, or, if that is open, the one of the numbers."""
        if self._name is not None:
            try:
                return self.kind.find(self._name)
            except UnknownChoice as error:
                assert self._named is not None, "it gave the name"
                where = self._named.label
                raise UnknownChoice(
                    f"{where}: {error}", title=error.title, name=error.name
                ) from None
        if isinstance(default := self.option.default, str) and default != self.option.none:
            return self.kind.find(default)
        known = self.kind.numbers()
        numbers = list(self._flat)
        if not numbers:
            return None
        owners = [known[flat].owners for flat in numbers]
        fitting = [choice for choice in owners[0] if all(choice in others for others in owners)]
        if not fitting:
            first = owners[0][0]
            other = next(flat for flat in numbers if first not in known[flat].owners)
            raise ConfigError(
                f"{self._flat[other].label}: {self.kind.lacks(first, other)}; no "
                f"{self.kind.title} has both {numbers[0]} and {other}, leave one out"
            )
        return fitting[0]
