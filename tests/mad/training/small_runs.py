"""A run of a candidate small enough for a test: width 16, two layers, a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.run import Point, RunConfig, RunResult
from mlxhog.models.mad.layers import make

SETTINGS = {"vocab": 8, "seq_len": 16, "train_rows": 96, "test_rows": 32}


def small_run(
    *,
    layers: str = "gated-conv swiglu",
    workers: str = "torch:cpu",
    seed: int = 3,
    dim: int = 16,
    task: str = "in-context-recall",
    settings: dict[str, Any] | None = None,
    **protocol: Any,
) -> RunConfig:
    """A run of six steps an epoch; `protocol` replaces fields of the protocol."""
    chosen = {
        "optimizer": PUBLISHED,
        "lr": 2e-3,
        "batch_size": 16,
        "steps": 12,
        "eval_every": 6,
        **protocol,
    }
    return RunConfig(
        task=task,
        settings=SETTINGS | (settings or {}),
        layers=tuple(map(make, layers.split())),
        dim=dim,
        protocol=Protocol(**chosen),
        seed=seed,
        workers=workers,
    )


def numbers(result: RunResult) -> RunResult:
    """The result without its times."""
    curve = tuple(replace(point, seconds=0.0) for point in result.curve)
    return replace(result, seconds=0.0, curve=curve)


class Recorder:
    """Callbacks that keep their arguments, and give fixed answers."""

    def __init__(self, *, prune: bool = False, interrupt_at: int | None = None) -> None:
        self.beats = 0
        self.points: list[Point] = []
        self.asked: list[int] = []
        self._prune, self._interrupt_at = prune, interrupt_at

    def beat(self) -> None:
        self.beats += 1
        if self.beats == self._interrupt_at:
            raise KeyboardInterrupt

    def point(self, point: Point) -> None:
        self.points.append(point)

    def should_prune(self, point: Point) -> bool:
        self.asked.append(point.step)
        return self._prune
