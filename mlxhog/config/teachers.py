"""Teachers as a run chooses them: a distribution that is mixed into the target of every label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config.choices import TEACHERS, Choice, Kind
from mlxhog.config.options import option
from mlxhog.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Counts(Choice):
    """Counted n-grams of the training text (`mlxhog/data/counts.py`)."""

    kind: ClassVar[Kind] = TEACHERS
    name: ClassVar[str] = "counts"
    about: ClassVar[str] = "how often each byte, or token, follows each context in the text"

    weight: float = option(
        0.9,
        "share of the counted distribution in the target; the rest is the byte that came",
        above=0,
        high=1,
        flat="teacher_weight",
    )
    context: int = option(
        7,
        "bytes that the longest context spans on average, as far as a key of 64 bits has room for "
        "its ids: 7 bytes of UTF-8, 8 of ASCII, 3 tokens of a BPE",
        unit="bytes",
        low=1,
        high=63,
        flat="teacher_context",
    )


@TEACHERS.checked_by
def _check(choice: type[Choice]) -> None:
    if not issubclass(choice, Counts):
        raise ConfigError("it is not based on mlxhog.config.teachers.Counts")


TEACHERS.register(Counts)
