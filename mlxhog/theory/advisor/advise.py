"""Advice on a strategy: a profile, predictions, a trial, and reasons."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.base import machine
from mlxhog.base.load import Load, LoadWatch
from mlxhog.errors import ConfigError
from mlxhog.report.table import Section
from mlxhog.report.views import TellStep, numbered
from mlxhog.strategies import Hogwild
from mlxhog.theory.advisor import AdviseConfig
from mlxhog.theory.advisor.measuring import PAIRS, measured_profile, try_both
from mlxhog.theory.advisor.profile import Profile
from mlxhog.theory.advisor.rules import Arm, Recommendation, recommend
from mlxhog.theory.simulator.links import Link
from mlxhog.theory.target import Target

PROFILE_PARTS, TRIAL_PARTS = 4, 3 * PAIRS
"""Three short runs and the gradients; of each pair both runs, and their scores."""


@dataclass(frozen=True, kw_only=True)
class StrategyAdvice:
    """A strategy, and the reasons for it.

    Attributes:
        title: of the model.
        profile: the measurements.
        recommendation: of the rules.
        trial: of the two best, see `measuring.decide`; None without a trial.
        load: of the machine while times were measured.
        seconds: that the advice took.
    """

    title: str
    profile: Profile
    recommendation: Recommendation
    trial: dict[str, Any] | None
    load: Load
    seconds: float

    @property
    def untold(self) -> str | None:
        """Why the advice is a guess: the load of a busy machine; None if it is no guess."""
        if self.trial is not None:
            reason: str | None = self.trial["untold"]
            return reason
        return str(self.load) if self.load.busy else None

    @property
    def chosen(self) -> Arm:
        """The arm to train with: the trial's winner, or the rules' choice."""
        first, second = self.recommendation.first, self.recommendation.second
        if self.trial is not None and second is not None:
            return (second if self.trial["winner"] == second.arm.name else first).arm
        return first.arm

    @property
    def answer(self) -> str:
        """The strategy and its command, in one line."""
        advice = f"{self.chosen.name}: mlxhog train {self.chosen.flags}"
        if self.untold is None:
            return advice
        return f"{self.untold}, run advise again when other programs are quiet; a guess is {advice}"

    def to_json(self) -> dict[str, Any]:
        """Return the output of `advise --json`."""
        choice = self.recommendation
        return {
            "subject": self.title,
            "machine": machine.here().name,
            "answer": self.answer,
            "chosen": self.chosen.name,
            "flags": self.chosen.flags,
            "advised": choice.first.arm.name,
            "rule": choice.rule,
            "because": choice.because,
            "otherwise": choice.otherwise,
            "expected": [one.to_json() for one in choice.expected],
            "profile": self.profile.to_json(),
            "trial": self.trial,
            "untold": self.untold,
            "seconds": self.seconds,
        }

    def sections(self) -> Iterator[Section]:
        """Arrange the advice for `mlxhog.report.table.show`, 80 columns wide."""
        choice, profile, trial = self.recommendation, self.profile, self.trial
        yield Section(textwrap.fill(self.answer, 80))
        why = [f"{choice.rule}: {choice.because}", f"what would change it: {choice.otherwise}"]
        if trial is not None:
            a, b = (
                f"{name} {bits:.3f}"
                for name, bits in zip(trial["names"], trial["bits_per_byte"], strict=True)
            )
            why.append(
                f"tried in {PAIRS} pairs of runs: {a}, {b} bits per byte, difference "
                f"{trial['difference']:+.3f} ({trial['low']:+.3f} to {trial['high']:+.3f})"
                + f": a tie, so {trial['winner']}"
                * trial["tie"]
            )
        yield Section("why", notes=_filled(*why))
        yield Section(
            "predicted",
            ("strategy", "gradients/s", "staleness", "idle", "samples", "time"),
            [
                (
                    one.arm.name,
                    f"{one.prediction.gradients_per_s:.4g}",
                    f"{one.prediction.staleness.mean:.2f}",
                    f"{one.prediction.waiting_share:.0%}",
                    f"{one.samples:.2f}",
                    f"{one.time:.2f}",
                )
                for one in choice.expected
            ],
            _filled(
                "samples: to a loss, over those of one worker; a rule of thumb before a trial. "
                "time: to that loss, over that of sync"
            ),
        )
        measured = [
            f"rounds cost {profile.gain:.1%}: the slowest gradient takes "
            f"{1e3 * profile.slowest_s:.3g} ms, barrier and average {1e3 * profile.sync_s:.3g} ms",
            f"{profile.count} workers compute {profile.scaling:.2f} times as much as one; p_conf "
            f"{profile.p_conf:.2g}, {profile.density:.0%} of the elements in an update",
            *([] if profile.cluster is None else [profile.cluster]),
        ]
        yield Section(
            "measured",
            ("a gradient of", "mean", "cv", "99 %"),
            [
                (one["name"], f"{1e3 * one['mean_s']:.3g} ms", f"{one['cv']:.2f}",
                 f"{1e3 * one['p99_s']:.3g} ms")
                for one in profile.to_json()["workers"]
            ],
            _filled(*measured),
        )  # fmt: skip


def _filled(*notes: str) -> list[str]:
    return [textwrap.fill(note, 80, subsequent_indent="  ") for note in notes]


def advise_on(
    target: Target, options: AdviseConfig, *, tries: bool, tell: TellStep
) -> StrategyAdvice:
    """Measure, predict and try.

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
    trial = None
    if tries and choice.second is not None:
        trial = try_both(target, (choice.first.arm, choice.second.arm), options.try_time, tell)
    return StrategyAdvice(
        title=target.title,
        profile=profile,
        recommendation=choice,
        trial=trial,
        load=load,
        seconds=time.monotonic() - began,
    )
