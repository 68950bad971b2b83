"""The Pareto front: what no other beats both in cost and in score."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point dominates, by rising cost.

    Args:
        points: (cost, score); less cost is better, more score is better.

    A point dominates another that is worse in one of the two and no better in the other. Points
    that are equal in both do not dominate each other: all of them are on the front, or none.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found: list[int] = []
    best = float("-inf")
    for i in order:
        cost, score = points[i]
        if score > best or (found and points[found[-1]] == (cost, score)):
            found.append(i)
            best = score
    return found
