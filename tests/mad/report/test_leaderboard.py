"""The tables of a study, from studies with known numbers."""

import json
from dataclasses import replace

import pytest

from mlxhog.mad.report.leaderboard import lines, to_json
from mlxhog.mad.report.ranking import read_ranking
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
from tests.pairs import each_of

INTERVAL = 4.302652729911275 * 0.01 / 3**0.5  # t(0.975, 2), deviation and number of the seeds


def without_last_seed_of_mixed(record):
    return None if (record.candidate, record.seed) == (MIXED, 2) else record


def channels_diverge(record):
    return replace(record, status="diverged") if record.candidate == CHANNELS else record


def one_fails(record):
    at = (record.candidate, record.seed, record.task)
    if at != (CONV, 1, TASKS[0]):
        return record
    return replace(record, status="failed", reason="killed: needs more memory than there is")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return read_ranking(study(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    root = tmp_path_factory.mktemp("partial")
    return read_ranking(study(root, change=without_last_seed_of_mixed))


def test_candidates_are_ordered_by_score_and_every_number_is_there(whole):
    result = to_json(whole)
    assert [row["layers"] for row in result["candidates"]] == [CONV, MIXED, CHANNELS]
    for row in result["candidates"]:
        worth = WORTH[row["layers"]]
        assert row["score"] == pytest.approx(worth)
        assert row["interval"] == pytest.approx(INTERVAL)
        assert row["tasks"] == pytest.approx(dict.fromkeys(TASKS, worth))
        assert row["acc_token"] == pytest.approx(dict.fromkeys(TASKS, worth - 0.05))
        assert row["seeds"] == pytest.approx(
            {str(seed): worth + 0.01 * (seed - 1) for seed in SEEDS}
        )
        assert row["state"] == STATE[row["layers"]]
        assert row["seconds"] == pytest.approx(10.0 * len(TASKS) * len(SEEDS))
        assert (row["status"], row["missing"]) == ("done", [])
    assert not result["partial"]
    assert result["runs_done"] == result["runs_planned"] == 3 * len(TASKS) * len(SEEDS)
    json.dumps(result, allow_nan=False)


def test_a_step_size_that_the_optimizer_chooses_is_called_auto(tmp_path):
    ranking = read_ranking(study(tmp_path, protocol={"optimizer": "muon"}))
    assert ranking.facts["optimiser points"] == "lr auto"


def test_a_partial_study_says_so_and_which_runs_are_missing(partial):
    result = to_json(partial)
    assert result["partial"]
    (row,) = (row for row in result["candidates"] if row["status"] == "partial")
    assert row["layers"] == MIXED
    assert len(row["missing"]) == len(TASKS)
    assert all("seed 2" in run for run in row["missing"])
    assert "this study is partial" in lines(partial)[-1]


def test_a_pruned_candidate_does_not_owe_the_runs_that_it_was_spared(tmp_path):
    def pruned_in_its_first_run(record):
        if record.candidate != CHANNELS:
            return record
        first = (record.seed, record.task) == (SEEDS[0], TASKS[0])
        return replace(record, status="pruned") if first else None

    ranking = read_ranking(study(tmp_path, change=pruned_in_its_first_run))
    result = to_json(ranking)
    assert not result["partial"]
    assert result["runs_done"] == result["runs_planned"] == 2 * len(TASKS) * len(SEEDS) + 1
    assert result["candidates"][-1]["status"] == "pruned"
    assert "pruned, 17 missing" in lines(ranking)[4]


def test_a_sampler_without_an_end_owes_what_it_has_proposed(tmp_path):
    space = {"depth": 2, "mixers": ["gated-conv"], "channels": ["swiglu"], "template": "free"}
    store = study(tmp_path, candidates=(), space=space, sampler="random")
    for candidate in CANDIDATES:
        store.add_proposal(candidate)
    assert to_json(read_ranking(store))["runs_planned"] == 3 * len(TASKS) * len(SEEDS)


def test_a_diverged_run_scores_zero_and_is_told(tmp_path):
    ranking = read_ranking(study(tmp_path, change=channels_diverge))
    last = to_json(ranking)["candidates"][-1]
    assert (last["layers"], last["score"], last["status"]) == (CHANNELS, 0.0, "diverged")
    assert last["n_diverged"] == len(TASKS) * len(SEEDS)
    assert f"{last['n_diverged']} diverged" in lines(ranking)[0]


def test_a_failed_run_is_told_with_its_reason_everywhere(tmp_path):
    ranking = read_ranking(study(tmp_path, change=one_fails))
    (trouble,) = to_json(ranking)["troubles"]
    assert (trouble["layers"], trouble["status"]) == (CONV, "failed")
    for text in (trouble["reason"], "\n".join(lines(ranking))):
        assert "killed: needs more memory than there is" in " ".join(text.split())
    assert to_json(ranking)["candidates"][0]["n_failed"] == 1


@each_of("width", [20, 40, 60, 80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(partial, width):
    assert all(len(line) <= width for line in lines(partial, width))


@each_of("width", [60, 80, 100])
def test_a_narrow_terminal_has_every_column_below_the_score(partial, width):
    text = "\n".join(lines(partial, width))
    for word in ("score", "0.900 ± 0.025", "params", "time", "partial"):
        assert word in text


def test_a_pipe_gets_every_column_and_the_layers_as_they_are(partial):
    head, *rows = lines(partial)[1:5]
    assert [word for word in head.split() if word not in ("#", "layers")] == [
        *("score", "CR", "FR", "NR", "SC", "C", "M", "params", "state", "bytes", "time", "status")
    ]
    assert all(row.candidate in line for row, line in zip(partial.rows, rows, strict=True))


def test_equal_costs_and_steps_to_the_solution_are_in_every_form(tmp_path):
    def solves(record):
        step = 150 if (record.candidate, record.task) == (CONV, TASKS[0]) else None
        return replace(record, solved=step, state=130 if record.candidate == MIXED else 128)

    ranking = read_ranking(study(tmp_path, change=solves))
    first, second, third = to_json(ranking)["candidates"]
    assert first["solved"] == {**dict.fromkeys(TASKS), TASKS[0]: 150}
    assert first["intervals"] == pytest.approx(dict.fromkeys(TASKS, INTERVAL))
    assert (first["state_bytes"], second["state_bytes"]) == (512, 520)
    assert [row["rank_equal_state"] for row in (first, second, third)] == [1, 2, 3]
    assert [row["rank_equal_params"] for row in (first, second, third)] == [1, 2, None]
    text = "\n".join(lines(ranking))
    assert "at equal state bytes (within 5%): #1, before #2, #3" in text
    assert "#1 solved CR at step 150" in text


def test_a_study_of_several_rates_shows_the_score_at_the_fixed_one(tmp_path):
    def at_other_rates(record):
        return replace(record, acc_macro=0.1)

    store = study(tmp_path, change=at_other_rates, rates=(1e-3, 2e-3))
    for record in store.records():
        protocol = {**record.config["protocol"], "lr": 1e-3}
        config = {**record.config, "protocol": protocol}
        store.append(replace(record, key=f"other-{record.key}", config=config, acc_macro=0.6))
    ranking = read_ranking(store)
    row = to_json(ranking)["candidates"][0]
    assert (row["score"], row["fixed_score"]) == pytest.approx((0.6, 0.1))
    assert "fixed" in lines(ranking)[1].split()
    assert ranking.facts["step sizes"] == "score: the best of each setting; fixed: 0.002"


def test_a_study_without_a_run_says_so(tmp_path):
    ranking = read_ranking(study(tmp_path, change=lambda record: None))
    assert "0 of 54 runs have ended" in lines(ranking)[-1]
    assert to_json(ranking)["candidates"] == []


def test_a_study_with_validation_rows_shows_both_scores(tmp_path):
    def validated(record):
        return replace(record, val_macro=record.acc_macro - 0.1, val_token=record.acc_token)

    change = {"change": validated, "protocol": {"select": "val"}}
    ranking = read_ranking(study(tmp_path, **change))
    assert "0.900 ± 0.025  0.800" in lines(ranking)[2]
    assert ranking.facts["selected by"] == "val rows"
