"""What is decided of a run before it begins, and what it has found so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mlxhog.classic.result import Epoch
from mlxhog.classic.schemes import Scheme


@dataclass(frozen=True)
class Plan:
    """What is decided of a run before it begins.

    Attributes:
        scheme: who may write when.
        workers: processes.
        hand_out: of `config.HANDOUTS`.
        average_at_end: schemes with copies: average once, not after every epoch.
        epochs: passes over the examples.
        lr: step size of the first epoch.
        beta: factor on it after every epoch.
        batch: examples in a step.
        sampling: of `config.SAMPLINGS`.
        seed: of the order of examples.
        probe_every: see `probe.every`; None where nobody can lose an update.
    """

    scheme: Scheme
    workers: int
    hand_out: str
    average_at_end: bool
    epochs: int
    lr: float
    beta: float
    batch: int
    sampling: str
    seed: int
    probe_every: int | None

    def gamma(self, epoch: int) -> float:
        """Step size of an epoch, counted from 1."""
        return self.lr * self.beta ** (epoch - 1)


@dataclass
class Tally:
    """What the rounds of one epoch came to.

    Attributes:
        seconds: of the rounds, each from the first worker's begin to the last one's end.
        native_s: seconds inside the native loops, added up over workers.
        done: examples by rank.
        died: whether a worker died in one of them.
    """

    seconds: float = 0.0
    native_s: float = 0.0
    done: Counter[int] = field(default_factory=Counter)
    died: bool = False

    @property
    def examples(self) -> int:
        """Examples done by all workers."""
        return self.done.total()


@dataclass
class Course:
    """What a run has found so far."""

    initial: dict[str, float]
    epochs: list[Epoch] = field(default_factory=list)
    status: str = "done"
    start_s: float = 0.0
    missed: int = 0
    replaced: int = 0
    lost: int = 0
    raises: int = 0
    advice: str = ""
