"""The sequence that the best candidates of a search agree on, slot by slot.

Which candidates are the best: their scores are split in two where the variance within both parts
is least, and the upper part votes (or the K best). Of the parts' depths the most frequent one is
taken, and in each of its slots the layer that most of those candidates have. A tie goes to the
layer whose candidates have the higher mean score.

Source: the aggregation of Composer (Acun et al. 2025, arXiv:2510.00379), which found a vote per
slot better than the best single candidate; the split is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

Scored = tuple[tuple[str, ...], float]
"""Layers of a candidate, one text each, and its score."""


@dataclass(frozen=True)
class Slot:
    """The vote on one slot: layer -> votes, the winner first."""

    votes: Mapping[str, int]

    @property
    def winner(self) -> str:
        """The layer that is taken."""
        return next(iter(self.votes))


@dataclass(frozen=True)
class Vote:
    """What was agreed on.

    Attributes:
        slots: in order.
        voters: the candidates that voted, the best first.
        cluster: the candidates that were considered; those of another depth did not vote.
    """

    slots: tuple[Slot, ...]
    voters: tuple[Scored, ...]
    cluster: tuple[Scored, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The winning sequence."""
        return tuple(slot.winner for slot in self.slots)


def vote(scored: Sequence[Scored], top: int | None = None) -> Vote:
    """Let the best candidates vote.

    Args:
        scored: one or more candidates that have all their runs.
        top: how many of the best may vote; None is the upper part of the scores.
    """
    ranked = sorted(scored, key=lambda one: -one[1])
    if top is None:
        top = upper_part([score for _, score in ranked])
    cluster = ranked[:top]
    depths = Counter(len(layers) for layers, _ in cluster)
    depth, _ = depths.most_common(1)[0]  # of equal ones that of the better candidate
    voters = [one for one in cluster if len(one[0]) == depth]
    slots = [_slot(voters, number) for number in range(depth)]
    return Vote(tuple(slots), tuple(voters), tuple(cluster))


def upper_part(falling: Sequence[float]) -> int:
    """Return how many of the first scores are the upper of two parts.

    The parts are those of Jenks's natural breaks: the sum of the squared distances to the mean of
    the own part is least. All are in it where there are fewer than three, or all are equal.

    Args:
        falling: scores, the best first.
    """
    values = np.asarray(falling)
    if len(values) < 3 or values[0] == values[-1]:
        return len(values)
    within = [
        float(values[:k].var() * k + values[k:].var() * (len(values) - k))
        for k in range(1, len(values))
    ]
    return int(np.argmin(within)) + 1


def _slot(voters: Sequence[Scored], number: int) -> Slot:
    scores: dict[str, list[float]] = {}
    for layers, score in voters:
        scores.setdefault(layers[number], []).append(score)
    order = sorted(scores, key=lambda layer: (-len(scores[layer]), -fmean(scores[layer])))
    return Slot({layer: len(scores[layer]) for layer in order})
