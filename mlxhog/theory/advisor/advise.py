"""Advice on a strategy: a profile, predictions, a trial, and reasons."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from mlxhog.base import machine
from mlxhog.base.load import LoadWatch
from mlxhog.errors import ConfigError
from mlxhog.report.views import TellStep, numbered
from mlxhog.strategies import Hogwild
from mlxhog.theory.advisor import AdviseConfig
from mlxhog.theory.advisor.measuring import PAIRS, measured_profile, try_both
from mlxhog.theory.advisor.rules import recommend
from mlxhog.theory.simulator.links import Link
from mlxhog.theory.target import Target

PROFILE_PARTS, TRIAL_PARTS = 4, 3 * PAIRS
"""Three short runs and the gradients; of each pair both runs, and their scores."""


def advise_on(
    target: Target, options: AdviseConfig, *, tries: bool, tell: TellStep
) -> dict[str, Any]:
    """Measure, predict and try; returns what `advise --json` prints.

    The advice is `chosen` with its `flags` of train: the winner of the `trial`, or without one the
    choice of the rules, `advised`. `untold` says why it is a guess (the load of a busy machine), or
    is None.

    Args:
        target: the model and its training.
        options: of the command.
        tries: whether the two best are trained in pairs.
        tell: called with (part, step) before each step.

    Raises:
        MlxhogError: bad input, or a failed measurement; see `measured_profile`.
    """
    began = time.monotonic()
    if options.link is not None:
        Link.parse(options.link)  # a wrong one is refused before anything is measured
        if tries:
            raise ConfigError(
                "--link describes several machines, and a trial runs on this one; add --no-try"
            )
    if target.config.strategy is None:
        target = replace(target, config=replace(target.config, strategy=Hogwild()))
    tell = numbered(tell, PROFILE_PARTS + (TRIAL_PARTS if tries else 0))
    watch = LoadWatch()
    profile = measured_profile(target, options, tell)
    load = watch.look()
    choice = recommend(profile)
    arm, trial = choice.first.arm, None
    untold = str(load) if load.busy else None
    if tries and choice.second is not None:
        both = arm, choice.second.arm
        trial = try_both(target, both, options.try_time, tell)
        arm = next(one for one in both if one.name == trial["winner"])
        untold = trial["untold"]
    answer = f"{arm.name}: mlxhog train {arm.flags}"
    if untold is not None:
        answer = f"{untold}, run advise again when other programs are quiet; a guess is {answer}"
    return {
        "subject": target.title,
        "machine": machine.here().name,
        "answer": answer,
        "chosen": arm.name,
        "flags": arm.flags,
        "advised": choice.first.arm.name,
        "rule": choice.rule,
        "because": choice.because,
        "otherwise": choice.otherwise,
        "expected": [one.to_json() for one in choice.expected],
        "profile": profile.to_json(),
        "trial": trial,
        "untold": untold,
        "seconds": time.monotonic() - began,
    }
