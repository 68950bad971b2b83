"""What a run of a classic problem found, epoch by epoch and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxhog.classic.problem import Float32


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples.

    Attributes:
        number: from 1.
        lr: its step size gamma.
        seconds: from the first worker's first example to the last worker's last, averaging of
            copies included, evaluation and shuffling left out.
        native_s: seconds inside the native loops, added up over workers.
        examples: done in it.
        measures: "objective" and what else the problem measures, after it.
    """

    number: int
    lr: float
    seconds: float
    native_s: float
    examples: int
    measures: dict[str, float]

    @property
    def objective(self) -> float:
        """Objective after it; NaN or infinite where it diverged."""
        return self.measures["objective"]

    def to_json(self) -> dict[str, Any]:
        """As a row of the JSON answer."""
        return {
            "epoch": self.number,
            "lr": self.lr,
            "seconds": self.seconds,
            "native_s": self.native_s,
            "examples": self.examples,
            **self.measures,
        }


@dataclass(frozen=True)
class ClassicResult:
    """One run.

    Attributes:
        problem: its name.
        scheme: its name.
        write: "racy", "lossless" or "hot-cold"; "" where the scheme has one way to write.
        handout: how work was handed out.
        workers: processes.
        status: "done", "diverged" or "interrupted".
        start_s: spawning workers until all had mapped the arena; in no other number, but where
            workers are spawned for every epoch: then all but the first spawning is in `seconds`.
        initial: measures before the first epoch.
        epochs: in order.
        lost_updates: increments of the probe that never arrived; see `probe.py`.
        probe_updates: increments of the probe that were made; 0 where nobody shares parameters.
        missed: examples that no worker did, because one died.
        replaced: workers that died and were replaced.
        advice: what to do about a run that diverged, else "".
        params: the parameters at the end by name, copies.
    """

    problem: str
    scheme: str
    write: str
    handout: str
    workers: int
    status: str
    start_s: float
    initial: dict[str, float]
    epochs: tuple[Epoch, ...]
    lost_updates: int = 0
    probe_updates: int = 0
    missed: int = 0
    replaced: int = 0
    advice: str = ""
    params: Mapping[str, Float32] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def examples(self) -> int:
        """Examples of all epochs."""
        return sum(epoch.examples for epoch in self.epochs)

    @property
    def examples_per_s(self) -> float:
        """Examples per second; 0 before any was done."""
        return self.examples / self.seconds if self.seconds > 0 else 0.0

    @property
    def measures(self) -> dict[str, float]:
        """Measures at the end."""
        return self.epochs[-1].measures if self.epochs else self.initial

    @property
    def objective(self) -> float:
        """Objective at the end; NaN or infinite where it diverged."""
        return self.measures["objective"]

    def to_json(self, serial: ClassicResult | None) -> dict[str, Any]:
        """One object; what the issue promises stands last.

        Args:
            serial: the reference of the same command, if there was one.
        """
        return {
            "status": self.status,
            "write": self.write,
            "handout": self.handout,
            "start_s": self.start_s,
            "native_s": sum(epoch.native_s for epoch in self.epochs),
            "examples": self.examples,
            "missed": self.missed,
            "replaced": self.replaced,
            "measures": self.measures,
            "serial_measures": None if serial is None else serial.measures,
            "speedup": self.speedup(serial),
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "advice": self.advice,
            "probe_updates": self.probe_updates,
            "problem": self.problem,
            "scheme": self.scheme,
            "workers": self.workers,
            "seconds": self.seconds,
            "examples_per_s": self.examples_per_s,
            "objective": self.objective,
            "serial_objective": None if serial is None else serial.objective,
            "lost_updates": self.lost_updates,
        }

    def speedup(self, serial: ClassicResult | None) -> float | None:
        """Examples per second against the serial reference's."""
        if serial is None or serial is self or not serial.examples_per_s:
            return None
        return self.examples_per_s / serial.examples_per_s
