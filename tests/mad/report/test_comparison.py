"""Two candidates of a study, compared run by run."""

from dataclasses import replace

import pytest

from mlxhog.mad.report.comparison import candidate_of, compare, lines, to_json
from mlxhog.mad.report.ranking import read_ranking
from tests.mad.report.sample import CONV, MIXED, SEEDS, TASKS, study


def near(record):
    """Brings two candidates so close that their seeds overlap."""
    if record.candidate != MIXED:
        return record
    return replace(record, acc_macro=0.9 - 0.01 * (record.config["seed"] - 1))


def compared(root, a=CONV, b=MIXED, **how):
    ranking = read_ranking(study(root, **how))
    return compare(candidate_of(ranking, a), candidate_of(ranking, b))


def test_runs_are_paired_by_task_setting_and_seed(tmp_path):
    def shifted(record):  # the seeds differ by far more than the candidates
        far = 0.3 * record.config["seed"]
        small = 0.01 + 0.001 * record.config["seed"] if record.candidate == CONV else 0.0
        return replace(record, acc_macro=far + small)

    comparison = compared(tmp_path, change=shifted)
    assert comparison.whole.pairs == len(TASKS) * len(SEEDS)
    assert comparison.whole.mean == pytest.approx(0.011)
    assert comparison.whole.sign == 1
    assert comparison.unpaired == 0


def test_candidates_that_seeds_do_not_tell_apart_cannot_be_told(tmp_path):
    comparison = compared(tmp_path, change=near)
    assert comparison.whole.low < 0 < comparison.whole.high
    assert lines(comparison)[-1].startswith("cannot be told: difference of the scores")
    assert to_json(comparison)["answer"] == "cannot be told"


def test_every_task_has_the_same_share_also_if_one_has_more_runs(tmp_path):
    def two_of_the_first_task(record):
        run = (record.config["seed"], TASKS.index(record.task))
        gain = 0.6 if run[1] == 0 and record.candidate == CONV else 0.0
        kept = run in ((0, 0), (1, 0), (1, 1)) or (run[0] == 0 and run[1] > 1)
        return replace(record, acc_macro=0.2 + gain) if kept else None

    comparison = compared(tmp_path, change=two_of_the_first_task)
    assert comparison.tasks[TASKS[0]].pairs == 2
    assert comparison.whole.mean == pytest.approx(0.6 / len(TASKS))


def test_a_run_that_the_other_lacks_is_counted_and_left_out(tmp_path):
    def lacking(record):
        return None if (record.candidate, record.seed) == (MIXED, 2) else record

    comparison = compared(tmp_path, change=lacking)
    assert comparison.whole.pairs == 2 * len(TASKS)
    assert comparison.unpaired == len(TASKS)
    assert lines(comparison)[-1].startswith(f"{len(TASKS)} runs without")
