"""One training run of one candidate: all that its scores depend on, and the key made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from mlxhog.mad.protocol import Protocol
from mlxhog.mad.tasks.task import GENERATOR_VERSION
from mlxhog.models.mad.layer import Layer, to_dict


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A candidate on one setting of one task, at one optimiser point, with one seed.

    Attributes:
        task: full name, such as "in-context-recall".
        settings: every setting of the task, spelt out.
        layers: the flat list.
        dim: width d.
        position: positional embedding, one of `models.mad.config.POSITIONS`.
        protocol: how it is trained and scored.
        seed: of the data, the initial values and the order of batches.
        workers: mix inside the run, such as "torch:cpu" or "mlx:cpu,torch:cpu".
        threads: of each worker.
    """

    task: str
    settings: Mapping[str, Any]
    layers: tuple[Layer, ...]
    dim: int
    protocol: Protocol
    seed: int
    position: str = "none"
    workers: str = "torch:cpu"
    threads: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes, in a fixed order."""
        return {
            "task": self.task,
            "settings": dict(sorted(self.settings.items())),
            "layers": [to_dict(layer) for layer in self.layers],
            "dim": self.dim,
            "position": self.position,
            "protocol": asdict(self.protocol),
            "seed": self.seed,
            "workers": self.workers,
            "threads": self.threads,
        }

    def key(self) -> str:
        """Return 16 hexadecimal digits that change with every number and with the code's version.

        Where and beside what a run is executed is no part of it.
        """
        stamp = {"generator": GENERATOR_VERSION, "version": version("mlxhog"), **self.to_dict()}
        text = json.dumps(stamp, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shape(self) -> str:
        """Return what runs share that do the same operations: all but seed, lr and decay."""
        values = self.to_dict()
        del values["seed"], values["protocol"]["lr"], values["protocol"]["weight_decay"]
        return json.dumps(values, sort_keys=True)
