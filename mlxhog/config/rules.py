"""Rules written `NAME:NUMBER`, such as `linear:0.5` and `topk:0.01`, and straggler injection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mlxhog.base.quantities import parse_duration_s, parse_number
from mlxhog.errors import ConfigError

Reader = Callable[[str], Any]
"""Returns a number of a rule, or raises ValueError."""


def number(is_legal: Callable[[float], bool]) -> Reader:
    """Return a reader of legal numbers."""

    def read(text: str) -> float:
        if not is_legal(value := parse_number(text)):
            raise ValueError
        return value

    return read


positive, not_negative = number(lambda x: x > 0), number(lambda x: x >= 0)
share = number(lambda x: 0 <= x <= 1)


class Forms:
    """The legal texts `NAME:NUMBER:NUMBER` of an option, and their description `expected`.

    `readers` read the numbers of a name; `usual` has the number of a name that stands alone.
    """

    def __init__(
        self, expected: str, usual: Mapping[str, float | None], **readers: Sequence[Reader]
    ) -> None:
        self.expected, self._usual, self._readers = expected, usual, readers

    def read(self, text: str) -> tuple[str, list[Any]]:
        """Return name and numbers of a text.

        Raises:
            ValueError: the name is unknown, or a number is missing or not legal.
        """
        name, *parts = text.split(":")
        if not parts and name in self._usual:
            return name, [self._usual[name]]
        try:
            readers = self._readers[name]
            return name, [read(part) for read, part in zip(readers, parts, strict=True)]
        except (KeyError, OverflowError, ValueError):
            raise ValueError(f"wanted {self.expected}; got {text!r}") from None


_SLOW_FORMS = Forms(
    "RANK=FACTOR, RANK=random:PROBABILITY:FACTOR or RANK=late:TIME for each worker, such as "
    "0=1.5,1=random:0.2:3 (ranks from 0, factors at least 1, probabilities up to 1)",
    {},
    factor=(number(lambda x: x >= 1),),
    random=(share, number(lambda x: x >= 1)),
    late=(lambda text: not_negative(str(parse_duration_s(text))),),
)


_SLOW_FIELDS = {"factor": ["factor"], "random": ["probability", "factor"], "late": ["delay_s"]}


@dataclass(frozen=True)
class Slowdown:
    """A simulated straggler."""

    factor: float = 1.0  # of the time of a gradient, at least 1
    probability: float = 1.0  # that a gradient takes this time
    delay_s: float = 0.0  # seconds of training before it takes its first batch

    def factor_of(self, seed: int, rank: int, step: int) -> float:
        """Return the factor of one gradient, the same on every machine."""
        if self.probability == 1:
            return self.factor
        drawn = Random(f"mlxhog-slow-1|{seed}|{rank}|{step}").random()
        return self.factor if drawn < self.probability else 1.0


def parse_slowdowns(text: str | None) -> Mapping[int, Slowdown]:
    """Return the slowdowns by rank; None names no worker.

    Raises:
        ValueError: a part cannot be read, or a rank appears twice.
    """
    slowdowns: dict[int, Slowdown] = {}
    for part in [] if text is None else text.split(","):
        rank, equals, how = part.strip().partition("=")
        how = how if how.startswith(("random:", "late:")) else f"factor:{how}"
        if not (equals and rank.isdecimal()):
            raise ValueError(f"wanted {_SLOW_FORMS.expected}; got {part.strip()!r}")
        name, numbers = _SLOW_FORMS.read(how)
        if int(rank) in slowdowns:
            raise ValueError(f"worker {int(rank)} appears in {text!r} twice; keep one")
        slowdowns[int(rank)] = Slowdown(**dict(zip(_SLOW_FIELDS[name], numbers, strict=True)))
    return slowdowns


def check_ranks(text: str | None, workers: int) -> None:
    """Refuse ranks beyond the workers of the run.

    Raises:
        ConfigError: there are fewer workers.
    """
    for rank in parse_slowdowns(text):
        if rank >= workers:
            ranks = "rank 0" if workers == 1 else f"ranks 0 to {workers - 1}"
            raise ConfigError(
                f"inject_stragglers names worker {rank}, and the run has {workers} with {ranks}; "
                "name one of these, or raise --workers"
            )
