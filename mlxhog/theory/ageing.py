"""How much a gradient is worth that comes late: the same batch, before and after other updates.

Theorems bound this by curvature in the worst direction. It can simply be looked at: take the
gradient of a batch, let k other updates go by, and take it again. Runs in the child of
`sampling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.doctor.child import Lane
from mlxhog.theory.sampling import Source, Subject, Ticket, source

LAGS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Age:
    """Gradients that are some updates old.

    Attributes:
        lag: updates by others since the parameters were read.
        cosine: between the old and the fresh gradient of the same batch, mean over batches.
        change: length of their difference over that of the fresh one, likewise.
    """

    lag: int
    cosine: float
    change: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def age(
    lane: Lane,
    subject: Subject,
    watched: Sequence[Ticket],
    others: Sequence[Ticket],
    *,
    lr: float,
    clip: float,
    signs: bool,
) -> tuple[Age, ...]:
    """Compare old gradients with fresh ones.

    Args:
        lane: of the child.
        subject: which gradients.
        watched: batches whose gradients are compared.
        others: batches of the updates in between, at least the largest of `LAGS`.
        lr: step size.
        clip: largest length of a gradient; 0 for any.
        signs: steps of `lr` in each element's sign, the first ones of AdamW; else SGD's.
    """
    ours = source(lane, subject)
    kept = ours.backend.inbox.copy()
    old = []
    for ticket in watched:
        ours.gradient(ticket)
        old.append(ours.flat.copy())
    found = []
    for done, ticket in enumerate(others[: LAGS[-1]], start=1):
        ours.gradient(ticket)
        ours.move(_step(ours, clip=clip, signs=signs), -lr)
        if done in LAGS:
            pairs = []
            for one, before in zip(watched, old, strict=True):
                ours.gradient(one)
                pairs.append(_compare(before, ours.flat))
            cosine, change = np.mean(pairs, axis=0)
            found.append(Age(done, float(cosine), float(change)))
    ours.backend.inbox[:] = kept
    ours.backend.refresh()
    return tuple(found)


def _step(ours: Source, *, clip: float, signs: bool) -> NDArray[np.float32]:
    if signs:
        return np.sign(ours.flat)
    norm = float(np.linalg.norm(ours.flat))
    return ours.flat * np.float32(clip / norm) if clip and norm > clip else ours.flat


def _compare(old: NDArray[np.float32], fresh: NDArray[np.float32]) -> tuple[float, float]:
    lengths = float(np.linalg.norm(old)), float(np.linalg.norm(fresh))
    if not all(lengths):
        return float(lengths[0] == lengths[1]), float(lengths[0] != lengths[1])
    cosine = float(np.dot(old / lengths[0], fresh / lengths[1]))
    return min(1.0, cosine), float(np.linalg.norm(fresh - old)) / lengths[1]
