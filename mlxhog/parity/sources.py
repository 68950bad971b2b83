"""Where a subject comes from: an architecture, a checkpoint or a recorded case.

What it will compute is known first, and its parameters are drawn or read only when they are wanted,
so that a model which this machine cannot hold is refused before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlxhog.checkpoint import checkpoint, formats
from mlxhog.models.registry import load_architecture
from mlxhog.parity import architectures, cases
from mlxhog.parity.architectures import Sizes
from mlxhog.parity.subject import Array, ModelPlan, Plan, Subject, check


@dataclass(frozen=True)
class Source:
    """A subject to come.

    Attributes:
        title: what it is.
        plan: what it computes.
        shape: of its tokens, (B, S); () where it has none.
        make: draws or reads it, and checks its numbers.
    """

    title: str
    plan: Plan
    shape: tuple[int, ...]
    make: Callable[[], Subject]


def open_source(kind: str, where: str, sizes: Sizes, runs: Path) -> Source:
    """Find what a command names.

    Args:
        kind: "config", "checkpoint" or "case".
        where: a name or a path.
        sizes: tokens and steps; a case has tokens of its own.
        runs: the folder of runs.

    Raises:
        ConfigError: the architecture is unknown, or its fields contradict each other.
        CheckpointError, RunError: there is no such checkpoint, or it is damaged.
        DataError: there is no such case, or it is damaged.
    """
    if kind == "case":
        return _case(Path(where), sizes)
    if kind == "checkpoint":
        return _checkpoint(checkpoint.locate(where, runs), sizes)
    cfg = load_architecture(where)

    def make() -> Subject:
        params = architectures.perturbed_init(cfg, sizes.seed)
        return architectures.subject(where, cfg, params, sizes, architectures.PERTURBED)

    return Source(where, ModelPlan(cfg, sizes.steps), (sizes.batch_size, sizes.seq_len), make)


def _checkpoint(path: Path, sizes: Sizes) -> Source:
    opened = formats.open(path)

    def make() -> Subject:
        params: dict[str, Array] = {
            name: np.empty(value.shape, np.float32) for name, value in opened.tensors.items()
        }
        opened.copy_into(params)
        title, note = str(path), architectures.OWN
        return architectures.subject(title, opened.config, params, sizes, note)

    shape = (sizes.batch_size, sizes.seq_len)
    return Source(str(path), ModelPlan(opened.config, sizes.steps), shape, make)


def _case(path: Path, sizes: Sizes) -> Source:
    found = cases.read(path, steps=sizes.steps)

    def make() -> Subject:
        check(found)
        return found

    shape = found.fixed["tokens"].shape if "tokens" in found.fixed else ()
    return Source(found.title, found.plan, shape, make)
