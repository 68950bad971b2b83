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

from collections.abc import Iterable, Mapping
from typing import Any

from mlxhog.base.quantities import format_share

TIMES = ("read", "compute", "apply", "wait", "forward", "optimizer", "other")
"""Times of a worker in its report, which has them with the ending `_s`."""

PARTS = ("forward", "backward", "gradient", "optimizer", "read", "write", "wait", "other")
GRADIENT = PARTS[:3]
"""Of these a worker has the first two, or the last."""


def shares(workers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of the parts in all steps of some workers, in the order of `PARTS`; their sum is 1.

    The workers are fields of their reports. Parts of a gradient that no worker has are left out;
    before the first step there are none.
    """
    totals = dict.fromkeys(PARTS, 0.0)
    for worker in workers:
        spent_s = {name: worker.get(f"{name}_s", 0.0) for name in TIMES}
        compute_s, apply_s = spent_s.pop("compute"), spent_s.pop("apply")
        spent_s["backward" if spent_s["forward"] else "gradient"] = compute_s - spent_s["forward"]
        spent_s["write"] = apply_s - spent_s["optimizer"]
        for name, spent in spent_s.items():
            totals[name] += max(0.0, spent)
    whole_s = sum(totals.values())
    return {
        name: round(spent / whole_s, 4)
        for name, spent in totals.items()
        if whole_s and (spent or name not in GRADIENT)
    }


def in_words(parts: Mapping[str, float]) -> list[str]:
    """Spell the parts that took time.

    >>> in_words({"gradient": 0.951, "read": 0.004, "wait": 0.0, "other": 0.045})
    ['gradient 95 %', 'read 0.4 %', 'other 4.5 %']
    """
    return [f"{name} {format_share(share)}" for name, share in parts.items() if share]


def rows(by_worker: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A table as texts, its header first: a row for each worker with shares, a column a part."""
    filled = {name: parts for name, parts in by_worker.items() if parts}
    columns = [part for part in PARTS if any(part in parts for parts in filled.values())]
    header = [["", *columns]] if filled else []
    return header + [
        [name, *(format_share(parts[part]) if part in parts else "-" for part in columns)]
        for name, parts in filled.items()
    ]
