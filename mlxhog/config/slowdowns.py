"""Workers that are slowed down on purpose, as `--slow` names them; for experiments and tests.

    0=1.5            every gradient of the worker with rank 0 takes 1.5 times as long
    1=random:0.2:3   each of its gradients takes 3 times as long with probability 0.2
    1=late:10        it takes no batch in the first 10 seconds of training

Ranks count the workers of `--workers` from 0. A comma stands between workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from mlxhog.config.quantities import parse_duration_s, parse_number
from mlxhog.errors import ConfigError

WANTED = (
    "RANK=FACTOR, RANK=random:PROBABILITY:FACTOR or RANK=late:TIME for each worker, such as "
    "0=1.5,1=random:0.2:3 (ranks from 0, factors at least 1, probabilities up to 1)"
)


@dataclass(frozen=True)
class Slowdown:
    """How one worker is slowed down.

    Attributes:
        factor: times that a gradient takes, at least 1.
        probability: that a gradient takes so long.
        late_s: seconds of training before it takes its first batch.
    """

    factor: float = 1.0
    probability: float = 1.0
    late_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Slowdown:
        """Read what stands behind the rank.

        Raises:
            ValueError: it says nothing that could be.
        """
        kind, *numbers = text.strip().split(":")
        if kind == "late":
            (late,) = numbers
            slowdown = cls(late_s=parse_duration_s(late))
        elif kind == "random":
            probability, factor = map(parse_number, numbers)
            slowdown = cls(factor=factor, probability=probability)
        else:
            (factor,) = map(parse_number, (kind, *numbers))
            slowdown = cls(factor=factor)
        if slowdown.factor < 1 or not 0 <= slowdown.probability <= 1 or slowdown.late_s < 0:
            raise ValueError(f"wanted {WANTED}")
        return slowdown

    def factor_of(self, seed: int, rank: int, step: int) -> float:
        """The factor of one gradient: the same for the same numbers, on every machine."""
        if self.probability == 1:
            return self.factor
        drawn = Random(f"mlxhog-slow-1|{seed}|{rank}|{step}").random()
        return self.factor if drawn < self.probability else 1.0


def parse(text: str | None) -> Mapping[int, Slowdown]:
    """Return the slowdowns by rank; None names no worker.

    Raises:
        ValueError: a part cannot be read, or a rank stands there twice.
    """
    slowdowns: dict[int, Slowdown] = {}
    for part in [] if text is None else text.split(","):
        rank, equals, how = part.strip().partition("=")
        try:
            if not (equals and rank.isdecimal()):
                raise ValueError
            slowdown = Slowdown.parse(how)
        except ValueError:
            raise ValueError(f"wanted {WANTED}; got {part.strip()!r}") from None
        if int(rank) in slowdowns:
            raise ValueError(f"worker {int(rank)} stands in {text!r} twice; slow it in one way")
        slowdowns[int(rank)] = slowdown
    return slowdowns


def check_ranks(text: str | None, workers: int) -> None:
    """Refuse a rank that no worker of the run has.

    Raises:
        ConfigError: there are fewer workers.
    """
    for rank in parse(text):
        if rank >= workers:
            ranks = "rank 0" if workers == 1 else f"ranks 0 to {workers - 1}"
            raise ConfigError(
                f"slow names worker {rank}, and the run has {workers} with {ranks}; name one of "
                "those, or raise --workers"
            )
