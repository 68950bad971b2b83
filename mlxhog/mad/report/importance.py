"""How much the choice in each slot matters for the score: main effects of a study's candidates.

The scores are fitted by least squares with one number for every layer of every slot,

    score = mean + effect[slot 1][its layer] + effect[slot 2][its layer] + ..

and a slot's share is the variance of its effects over the candidates, as part of the variance of
the scores. All slots are fitted together, so that one which only goes along with another, as in a
study that a sampler drew, is not given what the other did. What the fit leaves (pairs of layers
that suit each other, and noise) would by chance show up in every slot's effects, the more the fewer
candidates there are: its expected part is taken off. In a whole grid whose slots do not interact
the shares are those of an analysis of variance, and add up to 1.

Source: main effects as in Hutter et al. 2014, An Efficient Approach for Assessing Hyperparameter
Importance (fANOVA), of an additive model; the correction as in Hays 1963, omega squared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOTHING = "(none)"
"""What a candidate has in a slot beyond its depth."""

MOST_BY_CHANCE = 0.25
"""Shares are not told where a slot would have more than this without mattering."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Slot:
    """What was tried at one place of the sequence.

    Attributes:
        number: counted from 1.
        means: layer -> mean score of the candidates that have it here, the best first.
        counts: layer -> how many those are.
        share: of the variance of all scores, in [0, 1]; 0 where there was no choice, NaN where
            the candidates are too few to tell the slots apart.
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
    chosen = [
        [layers[k] if k < len(layers) else NOTHING for layers, _ in scored] for k in range(depth)
    ]
    shares = _shares([np.unique(names, return_inverse=True)[1] for names in chosen], scores)
    return [
        _slot(k + 1, names, scores, share)
        for k, (names, share) in enumerate(zip(chosen, shares, strict=True))
    ]


def _slot(number: int, chosen: Sequence[str], scores: Floats, share: float) -> Slot:
    names = np.array(chosen)
    groups = {str(name): scores[names == name] for name in np.unique(names)}
    best_first = sorted(groups, key=lambda name: -groups[name].mean())
    return Slot(
        number=number,
        means={name: float(groups[name].mean()) for name in best_first},
        counts={name: len(groups[name]) for name in best_first},
        share=share,
    )


def _shares(chosen: Sequence[NDArray[np.intp]], scores: Floats) -> list[float]:
    """Share of every slot, from the number of the layer that each candidate has there."""
    # One column per layer but a slot's first: 1 where a candidate has it, less the column's mean.
    columns = [
        (which[:, None] == np.arange(1, which.max() + 1)[None, :]).astype(float) for which in chosen
    ]
    columns = [column - column.mean(0) for column in columns]
    X = np.hstack([*columns, np.empty((len(scores), 0))])
    y = scores - scores.mean() if len(scores) else scores
    total = float(y @ y)
    if not X.shape[1] or total == 0:
        return [0.0] * len(chosen)
    effects = np.linalg.pinv(X)  # y -> the effect of every column
    residual = y - X @ (effects @ y)
    spare = len(scores) - 1 - int(np.linalg.matrix_rank(X))
    unknown = [math.nan if column.shape[1] else 0.0 for column in columns]
    if not spare:
        return unknown
    shares, at = [], 0
    for column in columns:
        own = slice(at, at + column.shape[1])
        at = own.stop
        fitted = column @ effects[own]  # y -> what this slot contributes to every candidate
        by_chance = float((fitted * fitted).sum() * (residual @ residual)) / spare
        if by_chance > MOST_BY_CHANCE * total:
            return unknown
        part = float(np.square(fitted @ y).sum()) - by_chance
        shares.append(min(1.0, max(0.0, part / total)) if column.shape[1] else 0.0)
    return shares
