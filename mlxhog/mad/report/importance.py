"""How much the choice in each slot matters for the score: main effects of a study's candidates.

A slot's share is the part of the variance of scores that lies between the groups of candidates with
equal layers there (eta squared, Fisher 1925). In an exhaustive grid the shares of all slots add up
to at most 1. In a sampled study the slots' choices go together, so a share also holds what other
slots did at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NOTHING = "(none)"
"""What a candidate has in a slot beyond its depth."""


@dataclass(frozen=True)
class Slot:
    """What was tried at one place of the sequence.

    Attributes:
        number: counted from 1.
        means: layer -> mean score of the candidates that have it here, the best first.
        counts: layer -> how many those are.
        share: of the variance of all scores, in [0, 1]; 0 where there was no choice.
    """

    number: int
    means: Mapping[str, float]
    counts: Mapping[str, int]
    share: float


def slots(scored: Sequence[tuple[Sequence[str], float]]) -> list[Slot]:
    """Return every slot in order; none where nothing was scored.

    Args:
        scored: layers of a candidate, and its score.
    """
    depth = max((len(layers) for layers, _ in scored), default=0)
    scores = np.array([score for _, score in scored])
    return [
        _slot(k + 1, [layers[k] if k < len(layers) else NOTHING for layers, _ in scored], scores)
        for k in range(depth)
    ]


def _slot(number: int, chosen: Sequence[str], scores: np.ndarray) -> Slot:
    names = np.array(chosen)
    groups = {str(name): scores[names == name] for name in np.unique(names)}
    best_first = sorted(groups, key=lambda name: -groups[name].mean())
    total = float(((scores - scores.mean()) ** 2).sum())
    between = sum(
        len(group) * float(group.mean() - scores.mean()) ** 2 for group in groups.values()
    )
    return Slot(
        number=number,
        means={name: float(groups[name].mean()) for name in best_first},
        counts={name: len(groups[name]) for name in best_first},
        share=min(1.0, between / total) if total > 0 else 0.0,
    )
