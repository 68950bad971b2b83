"""The final of a study of suite lm: its first two candidates in the paired test of `compare`.

Both were chosen by their scores, so the pairs have seeds that no run of the study had.
"""

import hashlib
from typing import Any

from mlxhog.base.quantities import Interval
from mlxhog.display.views import Tell
from mlxhog.experiments import CompareConfig
from mlxhog.experiments.api import result_of
from mlxhog.experiments.pairs import Comparison, Side
from mlxhog.mad.run import RunConfig
from mlxhog.mad.scores import CandidateScore
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.scheduler import seconds_used
from mlxhog.mad.study.store import Store
from mlxhog.mad.tasks.text import TEXT_TASK
from mlxhog.mad.training.text import VAL_TOKENS, train_config, write_model

FIELDS = ("answer", "verdict", "difference", "interval", "pairs_used", "pairs_planned")
"""What a study keeps of the comparison."""


def compare(
    store: Store, study: StudyDefinition, two: list[CandidateScore], tell: Tell, limit: Interval
) -> dict[str, Any] | None:
    """Compare two candidates, or continue to; return what the study keeps.

    None if the study's budget of time is used before an answer; the next session continues.

    Raises:
        KeyboardInterrupt: a signal asked to end; finished pairs are kept.
        MlxhogError: as of `Comparison`.
    """
    runs = [_counted(study, row) for row in two]
    # A repeated run may change the two; the pairs of others stay apart.
    digest = hashlib.sha256(repr([(run.candidate, run.dim, run.recipe) for run in runs]).encode())
    folder = store.directory / "final" / digest.hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    sides = [
        Side(name, train_config(run, write_model(run, folder / f"{name}.yaml")))
        for name, run in zip("ab", runs, strict=True)
    ]
    terms = CompareConfig(
        **{unit: runs[0].settings[unit] for unit in ("time", "tokens")},
        pairs=study.pairs, val_subset_tokens=VAL_TOKENS, seed=(max(study.seeds) + 1) % 2**32,
    )  # fmt: skip
    comparison = Comparison(sides[0], sides[1], terms, folder / "comparison")
    before_s = seconds_used(store.records())
    with comparison.open():
        while not comparison.outcome.ended:
            pairs_s = sum(pair.a.seconds + pair.b.seconds for pair in comparison.pairs)
            if limit.seconds is not None and before_s + pairs_s >= limit.seconds:
                return None
            tell(f"final: pair {len(comparison.pairs) + 1} of at most {study.pairs}")
            comparison.run_next(lambda part, step: None)
    facts = result_of(comparison).facts
    kept = dict(zip("ab", (row.candidate for row in two), strict=True))
    return kept | {name: facts[name] for name in FIELDS}


def _counted(study: StudyDefinition, row: CandidateScore) -> RunConfig:
    """Return a run of the last rung on text, at the learning rate that ranks the candidate."""
    best = next(one for one in row.best if one.task == TEXT_TASK)
    lr = best.config["recipe"]["lr"]
    own = study.runs(row.candidate, len(study.rungs) - 1, int(row.measures["dim"]))
    return next(run for run in own if run.task == TEXT_TASK and run.recipe.lr == lr)
