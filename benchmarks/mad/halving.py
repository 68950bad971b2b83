"""Successive halving on a recorded surface: the time that it saves, and the score that it loses.

A replay is a random search of some candidates, one run at a time, with the pruner of `mad search`
at its rungs. Rungs of `mad search` suit runs of suite lite; recall has none before step 1,000 of
its 2,000. On a surface of shorter runs every rung is earlier in proportion.

The lost score is that of the best candidate, less that of the one which the halved search selects,
both trained to the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlxhog.mad.search.pruning import Halving, Rungs
from mlxhog.mad.study.session import Planning
from mlxhog.mad.suites import suite
from mlxhog.mad.training.evaluation import most_steps


def rungs_of(runs, eta):
    """Return the rungs of `mad search`, in proportion to the length of a candidate's runs."""
    share = max(most_steps(run) for run in runs) / suite("lite").protocol["steps"]
    usual = Rungs()
    return Rungs(
        eta=eta,
        first=round(share * usual.first),
        first_of_sudden=round(share * usual.first_of_sudden),
    )


@dataclass(frozen=True)
class Halved:
    """One replay.

    Attributes:
        saved_time: share of the seconds of the same search without pruning.
        saved_steps: likewise, of the steps.
        lost_score: see the module.
        pruned: share of the candidates.
    """

    saved_time: float
    saved_steps: float
    lost_score: float
    pruned: float


class HalvingReplay:
    """Replays of searches of one seed of a surface, pruned at some rungs."""

    def __init__(self, surface, rungs, seed):
        self._rungs = rungs
        self._judge = Planning(replace(surface.study, seeds=(seed,))).judge
        self._runs = {
            candidate: [run for run in runs if run.record.seed == seed]
            for candidate, runs in surface.runs.items()
        }
        self._curves = {run.record.key: run.curve for own in self._runs.values() for run in own}

    def search(self, candidates):
        """Search some candidates in their order."""
        pruner = Halving(self._curves.__getitem__, self._rungs)
        halved = {candidate: self._train(candidate, pruner) for candidate in candidates}
        whole = {name: [run.record for run in self._runs[name]] for name in candidates}
        scores = {name: self._judge(own).score for name, own in whole.items()}
        selected = max(halved, key=lambda name: self._judge(halved[name]).score)
        return Halved(
            saved_time=_saved(halved, whole, "seconds"),
            saved_steps=_saved(halved, whole, "steps"),
            lost_score=max(scores.values()) - scores[selected],
            pruned=sum(map(pruner.is_pruned, candidates)) / len(candidates),
        )

    def _train(self, candidate, pruner):
        records = []
        for run in self._runs[candidate]:
            if pruner.is_pruned(candidate):
                break
            records.append(ended := _walk(run, pruner))
            pruner.ended(run.planned, ended)
        return records


def _walk(run, pruner):
    """Return the end of a run: the recorded one, or an earlier one at a rung."""
    rungs, before = pruner.rungs(run.planned), 0
    for point in run.curve:
        if point.step >= run.record.steps:
            break
        if any(before < rung <= point.step for rung in rungs) and pruner.should_prune(
            run.planned, point
        ):
            return replace(
                run.record,
                status="pruned",
                acc_macro=point.acc_macro,
                acc_token=point.acc_token,
                steps=point.step,
                seconds=point.seconds,
            )
        before = point.step
    return run.record


def _saved(halved, whole, number):
    spent, usual = (
        sum(getattr(record, number) for own in runs.values() for record in own)
        for runs in (halved, whole)
    )
    return 1 - spent / usual if usual else 0.0
