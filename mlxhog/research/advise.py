"""Choose a strategy: a profile by three short runs, rules, a trial of the two best."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mlxhog import optim
from mlxhog.arena.child import Child, Lane
from mlxhog.base import machine
from mlxhog.base.load import Load, LoadWatch
from mlxhog.config.config import TrainConfig
from mlxhog.display.views import TellStep, numbered
from mlxhog.errors import ConfigError, Diverged
from mlxhog.experiments import CompareConfig
from mlxhog.experiments.paired_test import single_look
from mlxhog.experiments.pairs import Comparison, RunPair, Side
from mlxhog.experiments.short_runs import PLAIN, run_shortly, settings_for
from mlxhog.experiments.target import AnalysisTarget
from mlxhog.research import AdviseConfig, AnalyzeConfig
from mlxhog.research.analysis.analyze import plan_of, subject_of, tickets, workers_of
from mlxhog.research.analysis.conflicts import call_child, max_samples, measure
from mlxhog.research.analysis.sampling import Subject, Ticket, source
from mlxhog.research.simulator.machine import Worker, worker_of
from mlxhog.research.workload import CANDIDATES, Arm, Profile, recommend, rounds_of
from mlxhog.strategies import Hogwild, Serial, Strategy, Sync

# -- a profile -------------------------------------------------------------------------------------


MIN_STEPS = 8  # steps of every worker that a short run needs for its times


def options_of(strategy: Strategy, alone: str) -> dict[str, Any]:
    """Return the options of a run with this strategy; that of one process has the worker `alone`.

    Stragglers are injected into runs of several workers only.
    """
    of_one = {"workers": alone, "inject_stragglers": None} if strategy.one_process else {}
    return {**PLAIN, "strategy": strategy, **of_one}


def takes(config: TrainConfig, strategy: Strategy) -> bool:
    """Whether the other options allow this strategy."""
    try:
        replace(config, **options_of(strategy, config.workers))
    except ConfigError:
        return False
    return True


def measured_profile(target: AnalysisTarget, how: AdviseConfig, tell: TellStep) -> Profile:
    """Measure times, a round's cost, conflict and noise.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before any run starts.
        EnvironmentLacks: a backend or memory is missing.
        WorkerFailed, Diverged: a measurement failed.
    """
    workers = workers_of(target)
    if len(workers) < 2:
        raise ConfigError(
            f"--workers {target.config.workers} is one worker, for which every strategy is the "
            "same; advise on two or more, as in --workers 2"
        )
    subject = subject_of(target, plan_of(target, AnalyzeConfig()))

    def short(part: str, strategy: Strategy, **more: Any) -> tuple[list[Worker], float]:
        tell(part, "starting")
        result, times = run_shortly(
            target.config,
            lambda step: tell(part, step),
            seconds=how.measure,
            min_steps=MIN_STEPS,
            flag="--measure",
            **options_of(strategy, one),
            **more,
        )
        return [worker_of(one) for one in times], result.steps / result.seconds

    one = workers[0].backend
    together, _ = short(f"{len(workers)} workers, lock-free", Hogwild())
    (alone,), _ = short("one worker", Serial(), threads=workers[0].threads)
    in_rounds, rounds_per_s = short(f"{len(workers)} workers, synchronous", Sync())
    slowest_s = float(rounds_of(in_rounds, target.config.seed).max(axis=0).mean())
    drawn = tickets(
        subject.plan.batches().n_tickets, min(how.samples, max_samples(subject)), target.config.seed
    )
    with Child() as child:
        tell("gradients", f"starting {subject.plan.workers[0].backend}")
        measured = measure(child, subject, drawn, lambda part, step: tell("gradients", step))
        tell("gradients", "noise scale")
        noise: float | None = call_child(child, noise_scale, subject, drawn)
    total = sum(one.parameters for one in measured.blocks)
    p_conf = sum(one.parameters * one.p_conf for one in measured.blocks) / total
    return Profile(
        workers=together,
        alone=alone,
        sync_s=max(0.0, 1 / rounds_per_s - slowest_s),
        p_conf=min(1.0, p_conf),
        density=min(1.0, sum(one.mean for one in measured.blocks) / total),
        noise_scale=noise,
        batch=subject.plan.config.sequences_per_ticket,
        backend=one,
        adaptive=optim.optimizer_of(target.config).is_adaptive,
        reproducible=how.reproducible,
        heterogeneity=how.heterogeneity or 0.0,
        seed=target.config.seed,
    )


def noise_scale(lane: Lane, subject: Subject, drawn: Sequence[Ticket]) -> float | None:
    """Return the sequences in a batch at which noise and gradient are equal: tr(Sigma) / |G|^2.

    For n gradients of B sequences each, the mean of their squares is |G|^2 + tr(Sigma) / B, and the
    square of their mean |G|^2 + tr(Sigma) / (n B). None if the estimate of |G|^2 is not positive.

    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1.
    """
    ours, n = source(lane, subject), len(drawn)
    total, squares = np.zeros(ours.flat.size, np.float64), 0.0
    for ticket in drawn:
        ours.gradient(ticket)
        grad = ours.flat.astype(np.float64)
        total += grad
        squares += float(grad @ grad) / n
    of_mean = float(total @ total) / n**2
    noise = (squares - of_mean) / (1 - 1 / n)  # tr(Sigma) / B
    signal = squares - noise
    sequences = subject.plan.config.sequences_per_ticket
    return sequences * noise / signal if signal > 0 else None


# -- a trial ---------------------------------------------------------------------------------------

PAIRS = 4
TRY_S = 60.0  # training time of each of the two, in all pairs
TIE_BITS = 0.02  # bits per byte within which two losses are a tie, whatever the interval
UNEVEN = 1.3  # ratio of an arm's steps above which a trial on a busy machine does not count

VAL_TOKENS = 65_536


def decide(arms: tuple[Arm, Arm], pairs: Sequence[RunPair], load: Load) -> dict[str, Any]:
    """Return the result of some pairs of runs, the first arm being A.

    The `difference` of bits per byte, second less first, has a 95 % interval, `low` to `high`. The
    `winner` of a `tie` is the first arm that repeats. If a busy machine makes the trial
    `inconclusive`, which has the load, the first arm wins. But if one arm diverged in more runs,
    the other wins.

    Raises:
        Diverged: every run of both arms diverged.
    """
    runs = [[pair.a for pair in pairs], [pair.b for pair in pairs]]
    if all(run.status == "diverged" for side in runs for run in side):
        raise Diverged(
            f"{arms[0].name} and {arms[1].name} both diverged; give a smaller --lr, or leave the "
            "trial out with --no-trial"
        )
    result = single_look([pair.difference for pair in pairs])
    tie, winner = result.sign == 0 or abs(result.mean) < TIE_BITS, arms[int(result.mean < 0)]
    if tie:
        winner = next((arm for arm in arms if arm.repeats), arms[0])
    steps, inconclusive = [[run.steps for run in side] for side in runs], None
    if load.busy and any(max(each) > UNEVEN * min(each) for each in steps):
        inconclusive, winner, tie = str(load), arms[0], True
    diverged = [sum(run.status == "diverged" for run in side) for side in runs]
    if diverged[0] != diverged[1]:
        winner, tie = arms[int(diverged[0] > diverged[1])], False
    return {
        "names": [arm.name for arm in arms],
        "seconds": [sum(run.seconds for run in side) for side in runs],
        "steps": [sum(each) for each in steps],
        "bits_per_byte": [fmean(run.bits_per_byte for run in side) for side in runs],
        "difference": result.mean,
        "low": result.low,
        "high": result.high,
        "winner": winner.name,
        "tie": tie,
        "inconclusive": inconclusive,
    }


def try_both(target: AnalysisTarget, arms: tuple[Arm, Arm], tell: TellStep) -> dict[str, Any]:
    """Train both in pairs of runs at a constant learning rate, as `mlxhog compare`; `decide`.

    The first arm is the recommended one.
    """
    watch, config = LoadWatch(), target.config
    terms = CompareConfig(
        pairs=PAIRS, time=TRY_S / PAIRS, val_subset_tokens=VAL_TOKENS, seed=config.seed
    )
    with tempfile.TemporaryDirectory(prefix="mlxhog-advise-") as folder:

        def side(arm: Arm) -> Side:
            how = {**options_of(arm.strategy, arm.workers), "report_to": "none"}
            own = settings_for(config, folder, "advise", **how, schedule="constant")
            return Side(arm.name, own)

        comparison = Comparison(side(arms[0]), side(arms[1]), terms, Path(folder) / "pairs")
        pairs = [comparison.run_pair(number, tell) for number in range(1, PAIRS + 1)]
    return decide(arms, pairs, watch.look())


# -- the answer ------------------------------------------------------------------------------------

PROFILE_PARTS, TRIAL_PARTS = 4, 3 * PAIRS  # short runs and gradients; runs and their scores


def advise_on(
    target: AnalysisTarget, options: AdviseConfig, *, tries: bool, tell: TellStep
) -> dict[str, Any]:
    """Measure, predict and try; returns what `advise --json` prints.

    The advice is `chosen` with its `flags` of train: the winner of the `trial`, or without one the
    choice of the rules, `advised`. `inconclusive` says why it is a guess, or is None.
    """
    began = time.monotonic()
    if target.config.strategy is None:
        target = replace(target, config=replace(target.config, strategy=Hogwild()))
    tell = numbered(tell, PROFILE_PARTS + (TRIAL_PARTS if tries else 0))
    watch = LoadWatch()
    profile = measured_profile(target, options, tell)
    load = watch.look()
    choice = recommend(profile, [one for one in CANDIDATES if takes(target.config, one)])
    arm, trial, inconclusive = choice.first, None, str(load) if load.busy else None
    if tries and choice.second is not None:
        both = arm, choice.second
        trial = try_both(target, both, tell)
        arm = next(one for one in both if one.name == trial["winner"])
        inconclusive = trial["inconclusive"]
    answer = f"{arm.name}: mlxhog train {arm.flags}"
    if inconclusive is not None:
        answer = f"{inconclusive}; best guess: {answer}; run advise again on an idle machine"
    return {
        "subject": target.title,
        "machine": machine.here().name,
        "answer": answer,
        "chosen": arm.name,
        "flags": arm.flags,
        "advised": choice.first.name,
        "rule": choice.rule.topic,
        "because": choice.rule.because(profile),
        "otherwise": choice.rule.otherwise,
        "expected": choice.expected,
        "profile": profile.to_json(),
        "trial": trial,
        "inconclusive": inconclusive,
        "seconds": time.monotonic() - began,
    }
