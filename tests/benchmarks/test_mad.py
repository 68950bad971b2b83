"""The MAD benchmark's own arithmetic, and the table that it checks in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxhog.mad.report.ranking import read_ranking
from mlxhog.mad.run import failed
from mlxhog.mad.study.session import Planning
from mlxhog.mad.suites import suite
from tests.mad.report import sample

pytestmark = pytest.mark.slow


def test_a_start_counts_from_the_end_of_the_run_before_in_the_same_process(load):
    Times = load("mad.throughput").Times
    again = load("mad.throughput").again
    runs = [
        Times(pid=1, began=10.2, first_step=10.5, ended=15.0),
        Times(pid=1, began=0.0, first_step=3.0, ended=10.0),
        Times(pid=2, began=0.0, first_step=4.0, ended=12.0),
        Times(pid=1, began=15.1, first_step=15.2, ended=20.0),
    ]
    assert again(runs) == pytest.approx([0.5, 0.2])


def test_the_table_has_every_candidate_with_its_score_and_cost(load, tmp_path):
    table = load("mad_table")
    text = table.markdown(_standing(table, tmp_path), suite("smoke"), parallel=2)
    for name in (*table.FOUR, *table.EIGHT_BLOCKS):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert "**0.500** ± 0.000" in row
        assert "| 10.0 | done |" in row
    assert "PARTIAL" not in text
    assert "No run diverged or failed." in text


def test_a_table_that_lacks_runs_says_so(load, tmp_path):
    table = load("mad_table")
    standing = _standing(table, tmp_path, but=lambda record: record.seed != table.SEEDS[2])
    text = table.markdown(standing, suite("smoke"), parallel=2)
    each = len(suite("smoke").settings) * len(table.NAMES)
    assert f"**PARTIAL: this study is partial: {2 * each} of {3 * each} runs have ended" in text


def test_the_table_names_what_counts_as_nothing(load, tmp_path):
    table = load("mad_table")

    def hung(record):
        first = record.candidate.startswith("gla") and record.seed == table.SEEDS[0]
        return replace(record, status="failed", reason="no sign of life") if first else record

    text = table.markdown(_standing(table, tmp_path, change=hung), suite("smoke"), parallel=2)
    assert "- GLA, memorization baseline, lr 2e-03, seed 12345: failed no sign of life" in text
    assert "done, 6 failed" in text


def _standing(table: Any, root: Path, *, change=sample.unchanged, but=lambda record: True) -> Any:
    """The table's study with every accuracy 0.5."""
    study = table.study_of("smoke")
    store = table.open_store(study, str(root), "table")
    planning = Planning(study)
    for candidate in table.NAMES:
        for run in planning.runs(candidate):
            record = change(
                replace(
                    sample.RECORD,
                    key=run.key,
                    candidate=candidate,
                    config=run.config.to_dict(),
                    label=run.label,
                )
            )
            if but(record):
                store.append(record)
    return read_ranking(store)


def test_states_are_held_if_every_seed_makes_no_error_at_any_length(load):
    script, claims = load("state_tracking"), load("harness.claims")

    def ended(*accuracies):
        by_length = tuple(zip((40, 2048), accuracies, strict=True))
        return replace(failed("", seconds=1.0), by_length=by_length)

    for errors, met in ((0.0, True), (1e-5, False)):
        findings = claims.Findings()
        held, lost = [ended(1.0, 1.0), ended(1.0, 1.0 - errors)], [ended(0.9, 0.5)]
        script.claim(findings, {("S3", "[mLSTM, sLSTM]"): held, ("parity", script.MLSTM): lost})
        assert [claim.met for claim in findings.claims] == [met, True]
