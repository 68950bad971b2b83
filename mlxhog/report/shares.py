"""Shares of a step: the activities of workers, from the seconds in their reports.

    part       activity of a worker
    forward    the forward pass of a gradient
    backward   the rest of the gradient: backward pass, sum over micro-batches
    gradient   both, where they are one graph that is computed at once (on a GPU)
    optimizer  the step, from the gradient; with AdamW and momentum also its write, in the same pass
    read       copies of the parameters
    write      the rest of a write: norm, addition to the parameters, averages of gradients
    wait       waits for other workers, for locks, for a pause (a checkpoint), for text
    other      the step's ticket, batch and record

Evaluations, samples and the time before the first step and after the last one are no part of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mlxhog.base.quantities import format_share

Report = Mapping[str, Any]
"""The fields of a worker's report."""

PARTS = ("forward", "backward", "gradient", "optimizer", "read", "write", "wait", "other")
GRADIENT = PARTS[:3]
"""Of these a worker has the first two, or the last."""


def shares(workers: Iterable[Report]) -> dict[str, float]:
    """Shares of the parts in all steps of some workers, in the order of `PARTS`; their sum is 1.

    Args:
        workers: fields of their reports, as in metrics.jsonl.

    Returns:
        Part -> share, without the parts of a gradient that no worker has; {} before the first step.
    """
    totals = dict.fromkeys(PARTS, 0.0)
    for worker in workers:
        read_s, compute_s, apply_s, wait_s, forward_s, optimizer_s, other_s = (
            _seconds(worker.get(f"{name}_s"))
            for name in ("read", "compute", "apply", "wait", "forward", "optimizer", "other")
        )
        totals["forward"] += forward_s
        totals["backward" if forward_s else "gradient"] += max(0.0, compute_s - forward_s)
        totals["optimizer"] += optimizer_s
        totals["read"] += read_s
        totals["write"] += max(0.0, apply_s - optimizer_s)
        totals["wait"] += wait_s
        totals["other"] += other_s
    whole_s = sum(totals.values())
    if not whole_s:
        return {}
    return {
        name: round(seconds / whole_s, 4)
        for name, seconds in totals.items()
        if seconds or name not in GRADIENT
    }


def in_words(parts: Mapping[str, float]) -> list[str]:
    """Spell the parts that took time.

    >>> in_words({"gradient": 0.951, "read": 0.004, "wait": 0.0, "other": 0.045})
    ['gradient 95 %', 'read 0.4 %', 'other 4.5 %']
    """
    return [f"{name} {format_share(share)}" for name, share in parts.items() if share]


def rows(by_worker: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A table as texts, its header first: a row for each worker, a column for each part.

    Args:
        by_worker: name of the row -> shares; rows without shares are left out.
    """
    filled = {name: parts for name, parts in by_worker.items() if parts}
    columns = [part for part in PARTS if any(part in parts for parts in filled.values())]
    header = [["", *columns]] if filled else []
    return header + [
        [name, *(format_share(parts[part]) if part in parts else "-" for part in columns)]
        for name, parts in filled.items()
    ]


def _seconds(value: object) -> float:
    """A number of a report, 0 if it is damaged."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        return 0.0
    return float(value)  # type: ignore[arg-type]
