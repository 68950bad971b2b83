"""Omega, rho, Delta and conflict of each block of a model, from the supports of sampled gradients.

A spawned process computes the gradients (`sampling.py`); this side keeps bitmaps, whose size is
bounded, and turns them into estimates with intervals (`estimators.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import Child, Failed
from mlxhog.errors import Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.theory.analysis import sampling
from mlxhog.theory.analysis.blocks import ELEMENT, GRAINS, Block
from mlxhog.theory.analysis.config import FEWEST
from mlxhog.theory.analysis.sampling import EXACT, WRITTEN, Subject, Ticket
from mlxhog.theory.estimators import (
    Estimate,
    estimate_delta,
    estimate_omega,
    estimate_p_conf,
    estimate_rho,
)
from mlxhog.theory.supports import Supports

BITMAP_BYTES = 1 << 30
"""Memory that bitmaps may take."""

CHUNK = 8
PATIENCE_S = 600.0  # for one chunk, and the import of a framework before the first


@dataclass(frozen=True)
class Conflict:
    """How the gradients of a block meet, in groups of one size.

    Attributes:
        groups: elements, lines, stripes or rows of the block.
        omega: groups that a gradient touches, at most.
        rho: share of the batches that one batch shares a group with, at most.
        delta: share of the batches that touch the busiest group.
        p_conf: probability that two batches share a group.
        mean_groups: groups that a gradient touches, on average.
        untouched: groups that no sampled gradient touched.
    """

    groups: int
    omega: Estimate
    rho: Estimate
    delta: Estimate
    p_conf: Estimate
    mean_groups: float
    untouched: int

    @property
    def dense(self) -> bool:
        """Whether any two sampled gradients met, in a group that all of them touched."""
        return self.delta.value == 1.0 and self.p_conf.value == 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the values, and the intervals below `intervals`."""
        found = {name: getattr(self, name) for name in ("omega", "rho", "delta", "p_conf")}
        return {
            **{name: estimate.value for name, estimate in found.items()},
            "mean": self.mean_groups,
            "untouched": self.untouched,
            "groups": self.groups,
            "intervals": {name: asdict(estimate) for name, estimate in found.items()},
        }


@dataclass(frozen=True)
class BlockConflicts:
    """A block's conflicts.

    Attributes:
        block: the block.
        by: (kind, grain) -> conflict; kinds and grains as in `sampling.py` and `blocks.py`.
    """

    block: Block
    by: Mapping[tuple[str, str], Conflict]

    @property
    def counted(self) -> str:
        """Which elements an update is said to touch: those written, where that is a part."""
        return WRITTEN if (WRITTEN, ELEMENT) in self.by else EXACT

    @property
    def elements(self) -> Conflict:
        """What the paper defines: conflicts in single elements."""
        return self.by[self.counted, ELEMENT]


@dataclass(frozen=True)
class Measured:
    """What sampled gradients told.

    Attributes:
        samples: gradients, each of one update.
        blocks: their conflicts.
        losses: (samples,) mean nats of each batch.
        norms: (samples,) length of each gradient, before clipping.
    """

    samples: int
    blocks: tuple[BlockConflicts, ...]
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]


def most_samples(subject: Subject) -> int:
    """Return how many gradients' bitmaps fit into `BITMAP_BYTES`.

    Raises:
        EnvironmentLacks: too few of them to say anything.
    """
    blocks = subject.blocks
    one = sum(-(-b.groups(g) // 8) for b in blocks for g in GRAINS) * len(subject.kinds)
    fit = BITMAP_BYTES // one
    if fit < FEWEST:
        parameters = sum(block.parameters for block in blocks)
        raise EnvironmentLacks(
            f"the supports of {FEWEST} gradients of {parameters:,} parameters take "
            f"{FEWEST * one / 2**30:.1f} GiB as bitmaps, the limit is {BITMAP_BYTES / 2**30:.0f}; "
            "analyze a narrower model of the same kind: supports hardly depend on the width"
        )
    return fit


def measure(
    child: Child, subject: Subject, tickets: Sequence[Ticket], tell: Callable[[str], None]
) -> Measured:
    """Sample the gradients of some batches, and estimate.

    Args:
        child: computes them.
        subject: of what.
        tickets: the batches, at least `FEWEST`, drawn at random.
        tell: told how far it is.

    Raises:
        Diverged: a gradient is not finite.
        WorkerFailed: the backend cannot compute them; says what it said last.
    """
    bits: dict[tuple[str, str, int], list[NDArray[np.uint8]]] = {}
    losses, norms = [], []
    for first in range(0, len(tickets), CHUNK):
        tell(f"{first} of {len(tickets)} gradients")
        found = asked(child, sampling.sample, subject, tickets[first : first + CHUNK])
        _check_finite(found, tickets[first : first + CHUNK])
        for key, rows in found.bits.items():
            bits.setdefault(key, []).append(rows)
        losses.append(found.losses)
        norms.append(found.norms)
    blocks = []
    for number, block in enumerate(subject.blocks):
        tell(f"conflicts of {block.name}")
        by = {}
        for kind in subject.kinds:
            for grain in GRAINS:
                # Popped: what has been joined is not kept twice.
                joined = np.concatenate(bits.pop((kind, grain, number)))
                by[kind, grain] = conflict(Supports(joined, block.groups(grain)))
        blocks.append(BlockConflicts(block, by))
    return Measured(len(tickets), tuple(blocks), np.concatenate(losses), np.concatenate(norms))


def conflict(supports: Supports) -> Conflict:
    """Estimate everything from some supports."""
    delta = estimate_delta(supports)
    rho = estimate_rho(supports)
    if rho.value < delta.value:  # which cannot be: the busiest group's examples all meet there
        rho = replace(rho, value=delta.value, low=max(rho.low, delta.low))
    return Conflict(
        groups=supports.n,
        omega=estimate_omega(supports),
        rho=rho,
        delta=delta,
        p_conf=estimate_p_conf(supports),
        mean_groups=float(supports.sizes().mean()),
        untouched=int(np.count_nonzero(supports.counts == 0)),
    )


def asked(child: Child, function: Callable[..., Any], *args: Any) -> Any:
    """Let the child compute something.

    Raises:
        WorkerFailed: it could not, or died.
    """
    try:
        return child.call(PATIENCE_S, function, *args)
    except Failed as failure:
        raise WorkerFailed(f"the gradients cannot be computed: {failure}") from failure


def _check_finite(found: sampling.Sampled, tickets: Sequence[Ticket]) -> None:
    wrong = np.flatnonzero(~np.isfinite(found.norms))
    if wrong.size:
        epoch, number = tickets[int(wrong[0])]
        raise Diverged(
            f"the gradient of batch {number} of epoch {epoch} is not finite (loss "
            f"{found.losses[wrong[0]]:g}); analyze an earlier checkpoint, or lower what made the "
            "parameters so large"
        )
