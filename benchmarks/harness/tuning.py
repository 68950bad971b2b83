"""One search of settings for every arm: the same axes, one after the other, as many trials each.

    AXES = {"lr": around(3e-3, 2.0, 7), "beta1": (0.8, 0.9, 0.95)}
    tune("staleness", {name: AXES for name in ARMS}, trial)     # --tune: settings/staleness.json
    settings("staleness")["Muon serial, 1"]                     # {"lr": 0.0045, "beta1": 0.9}

An arm that was tuned beside one that was not shows its tuning; so arms differ in nothing else.
"""

import json
import math
from functools import partial
from pathlib import Path

from harness.frame import write_rows

FOLDER = Path(__file__).resolve().parents[1] / "settings"


def around(first, factor, n):
    """n values of an axis around the first, by powers of a factor."""
    return tuple(first * factor ** (k - n // 2) for k in range(n))


def tuned(axes, trial, first=None):
    """The point with the lowest loss: one axis after the other, each at the best of those before.

    So every arm gets as many trials, but for axes that grow (`first`): all values of the first axis
    at the middle of the others, and of each further axis those that are new. A loss that is None or
    not finite diverged.

    Args:
        axes: axis -> its values, in order.
        trial: point -> its loss, the smaller the better.
        first: axis -> how many values in its middle are tried; those beside them only while the
            best one is the last of the tried ones. Then the neighbours of the best value of the
            first axis are tried again, at the best of all others.

    Raises:
        SystemExit: the best value of the first axis is at its end.
    """
    counts = {axis: (first or {}).get(axis, len(values)) for axis, values in axes.items()}
    lows = {axis: (len(values) - counts[axis]) // 2 for axis, values in axes.items()}
    point = {axis: values[lows[axis] + counts[axis] // 2] for axis, values in axes.items()}

    def lowest(axis, low, high):
        """The index of the best value of an axis, the others as they are."""
        values, losses = axes[axis], {}
        while True:
            for at in range(low, high):
                if at not in losses:
                    loss = trial({**point, axis: values[at]})
                    losses[at] = math.inf if loss is None or loss != loss else loss
            best = min(losses, key=losses.get)
            if first and best == low and low > 0:
                low -= 1
            elif first and best == high - 1 and high < len(values):
                high += 1
            else:
                return best

    for k, (axis, values) in enumerate(axes.items()):
        best = lowest(axis, lows[axis], lows[axis] + counts[axis])
        point[axis] = values[best]
        if k == 0 and len(values) > 2 and best in (0, len(values) - 1):
            raise SystemExit(
                f"{axis} {values[best]:g} is the last of its axis and the best; widen the axis"
            )
    if first:
        axis, values = next(iter(axes.items()))
        at = values.index(point[axis])
        point[axis] = values[lowest(axis, max(at - 1, 0), at + 2)]
    return point


def tune(name, arms, trial, first=None):
    """Search the settings of arms and record them; a known arm or trial is not tried again.

    Args:
        name: of the settings.
        arms: name of an arm -> its axes; as many values of each axis for all.
        trial: (arm, point) -> its loss.
        first: as of `tuned`.
    """
    assert len({tuple(map(len, axes.values())) for axes in arms.values()}) == 1, "one size for all"
    known = _read(name)
    for arm, axes in arms.items():
        if arm not in known["settings"]:
            known["settings"][arm] = tuned(axes, partial(_tried, name, known, arm, trial), first)
            write_rows(FOLDER / f"{name}.json", known)
            print(f"{arm}: {known['settings'][arm]}", flush=True)


def _tried(name, known, arm, trial, point):
    for one in known["trials"]:
        if one["arm"] == arm and point.items() <= one.items():
            return one["loss"]
    known["trials"].append({"arm": arm, **point, "loss": trial(arm, point)})
    write_rows(FOLDER / f"{name}.json", known)
    return known["trials"][-1]["loss"]


def settings(name, arms=()):
    """Arm -> its recorded settings.

    Raises:
        SystemExit: nothing was searched for one of the arms that are needed.
    """
    known = _read(name)["settings"]
    if missing := [arm for arm in arms if arm not in known]:
        raise SystemExit(f"no settings were searched for {'; '.join(missing)}; run it with --tune")
    return known


def _read(name):
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"settings": {}, "trials": []}


def record(name, arm, **point):
    """Add to the recorded settings of an arm."""
    known = _read(name)
    known["settings"].setdefault(arm, {}).update(point)
    write_rows(FOLDER / f"{name}.json", known)
