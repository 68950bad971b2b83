"""The leaderboard of a study in its three forms, from studies with known numbers."""

import json
from dataclasses import replace

import pytest

from mlxhog.mad.report.board import folded
from mlxhog.mad.report.leaderboard import section, to_json
from mlxhog.mad.report.ranking import read_ranking
from mlxhog.report import table
from tests.mad.report.sample import (
    CANDIDATES,
    CHANNELS,
    CONV,
    MIXED,
    SEEDS,
    STATE,
    TASKS,
    WORTH,
    study,
)

INTERVAL = 4.302652729911275 * 0.01 / 3**0.5  # t(0.975, 2), deviation and number of the seeds


def shown(root, change=lambda record: record, **definition):
    """The ranking of a study, its JSON, and its lines in a wide window."""
    ranking = read_ranking(study(root, change=change, **definition))
    return ranking, json.loads(json.dumps(to_json(ranking), allow_nan=False)), lines(ranking)


def lines(ranking, width=1000):
    return list(table.lines(section(ranking), width))


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """A study whose candidate MIXED lacks the last seed."""
    return shown(
        tmp_path_factory.mktemp("partial"),
        lambda one: None if (one.candidate, one.seed) == (MIXED, 2) else one,
    )


def test_candidates_are_ordered_by_score_and_every_number_is_there(tmp_path):
    _, result, _ = shown(
        tmp_path, lambda one: replace(one, state=130 if one.candidate == MIXED else 128)
    )
    assert [row["layers"] for row in result["candidates"]] == [CONV, MIXED, CHANNELS]
    for row in result["candidates"]:
        worth = WORTH[row["layers"]]
        assert row["score"] == pytest.approx(worth)
        assert row["interval"] == pytest.approx(INTERVAL)
        assert row["tasks"] == pytest.approx(dict.fromkeys(TASKS, worth))
        assert row["intervals"] == pytest.approx(dict.fromkeys(TASKS, INTERVAL))
        assert row["acc_token"] == pytest.approx(dict.fromkeys(TASKS, worth - 0.05))
        assert row["seeds"] == pytest.approx({str(s): worth + 0.01 * (s - 1) for s in SEEDS})
        assert row["seconds"] == pytest.approx(10.0 * len(TASKS) * len(SEEDS))
        assert (row["status"], row["missing"]) == ("done", [])
    assert [row["state_bytes"] for row in result["candidates"]] == [512, 520, 512]
    assert [row["rank_equal_state"] for row in result["candidates"]] == [1, 2, 3]
    assert [row["rank_equal_params"] for row in result["candidates"]] == [1, 2, None]
    assert not result["partial"]
    assert result["runs_done"] == result["runs_planned"] == 3 * len(TASKS) * len(SEEDS)


def test_a_partial_study_says_so_and_which_runs_are_missing(partial):
    ranking, result, text = partial
    assert result["partial"]
    (row,) = (row for row in result["candidates"] if row["status"] == "partial")
    assert (row["layers"], row["state"]) == (MIXED, STATE[MIXED])
    assert len(row["missing"]) == len(TASKS)
    assert all("seed 2" in run for run in row["missing"])
    assert "this study is partial" in text[-1]
    head, *rows = text[1:5]
    assert head.split()[:3] == ["#", "layers", "score"]
    assert head.split()[3:] == [*"CR FR NR SC C M params state bytes time status".split()]
    assert all(folded(row.layers) in line for row, line in zip(ranking.rows, rows, strict=True))
    assert "at equal parameters (within 5%): #1 alone" in "\n".join(text)


def test_a_narrow_terminal_has_every_column(partial):
    text = lines(partial[0], 60)
    for word in ("score", "0.900 ± 0.025", "params", "time", "partial"):
        assert word in "\n".join(text)


def pruned_in_its_first_run(record):
    if record.candidate != CHANNELS:
        return record
    first = (record.seed, record.task) == (SEEDS[0], TASKS[0])
    return replace(record, status="pruned") if first else None


def test_a_pruned_candidate_does_not_owe_the_runs_that_it_was_spared(tmp_path):
    _, result, text = shown(tmp_path, pruned_in_its_first_run)
    assert not result["partial"]
    assert result["runs_done"] == result["runs_planned"] == 2 * len(TASKS) * len(SEEDS) + 1
    assert result["candidates"][-1]["status"] == "pruned"
    assert "pruned, 17 missing" in text[4]


def test_a_sampler_without_an_end_owes_what_it_has_proposed(tmp_path):
    space = {"depth": 2, "mixers": ["gated-conv"], "channels": ["swiglu"], "template": "free"}
    store = study(tmp_path, candidates=(), space=space, sampler="random")
    for candidate in CANDIDATES:
        store.add_proposal(candidate)
    assert to_json(read_ranking(store))["runs_planned"] == 3 * len(TASKS) * len(SEEDS)


def test_lost_runs_score_zero_and_are_told_with_their_reason(tmp_path):
    def lost(record):
        if record.candidate == CHANNELS:
            return replace(record, status="diverged")
        first = (record.candidate, record.seed, record.task) == (CONV, 1, TASKS[0])
        return replace(record, status="failed", reason="killed: no memory") if first else record

    _, result, text = shown(tmp_path, lost)
    last = result["candidates"][-1]
    assert (last["layers"], last["score"], last["status"]) == (CHANNELS, 0.0, "diverged")
    assert last["n_diverged"] == len(TASKS) * len(SEEDS)
    assert f"{last['n_diverged']} diverged" in text[0]
    assert result["candidates"][0]["n_failed"] == 1
    failed = [one for one in result["troubles"] if one["status"] == "failed"]
    assert [(one["layers"], one["reason"]) for one in failed] == [(CONV, "killed: no memory")]
    assert f"... {last['n_diverged'] + 1 - 5} more, see --json" in "\n".join(text)


def test_validation_rows_that_select_have_their_score_beside(tmp_path):
    _, result, text = shown(
        tmp_path,
        lambda one: replace(one, val_macro=one.acc_macro - 0.1, val_token=one.acc_token),
        protocol={"select": "val"},
    )
    assert "0.900 ± 0.025  0.800" in text[2]
    assert "select val" in result["facts"]["protocol"]


def test_the_facts_are_the_definition_and_an_open_step_size_is_auto(tmp_path):
    ranking, _, text = shown(tmp_path, lambda one: None, protocol={"optimizer": "muon"})
    assert ranking.facts["points"] == "lr auto"
    assert ranking.facts["seeds"] == "0; 1; 2"
    assert ranking.facts["protocol"].startswith("optimizer muon")
    assert "0 of 54 runs have ended" in text[-1]
