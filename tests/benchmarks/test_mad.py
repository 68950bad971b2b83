"""The MAD benchmark's own arithmetic, and the table that it checks in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxhog.mad.report.ranking import read_ranking
from mlxhog.mad.run import failed
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.study import open_store
from mlxhog.mad.suites import suite
from mlxhog.mad.tasks import find
from tests.mad.report import sample


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


@pytest.mark.slow
def test_the_table_has_every_candidate_with_its_score_and_cost(load, tmp_path):
    table = load("mad_table").table_of("smoke")
    text = load("mad_table").markdown(table, _standing(table, tmp_path), parallel=2)
    for name in table.layers:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert "**0.500** ± 0.000" in row
        assert "| 10.0 | done |" in row
    assert "PARTIAL" not in text
    assert "No run diverged or failed." in text


def test_a_table_that_lacks_runs_says_so(load, tmp_path):
    table = load("mad_table").table_of("smoke")
    standing = _standing(table, tmp_path, but=lambda record: record.seed != table.seeds[2])
    text = load("mad_table").markdown(table, standing, parallel=2)
    each = len(suite("smoke").settings) * len(table.names)
    assert f"**PARTIAL: this study is partial: {2 * each} of {3 * each} runs have ended" in text


@pytest.mark.slow
def test_the_table_names_what_counts_as_nothing(load, tmp_path):
    table = load("mad_table").table_of("smoke")

    def hung(record):
        first = record.candidate.startswith("gla") and record.seed == table.seeds[0]
        return replace(record, status="failed", reason="no sign of life") if first else record

    standing = _standing(table, tmp_path, change=hung)
    text = load("mad_table").markdown(table, standing, parallel=2)
    assert "- GLA, memorization baseline, lr 2e-03, seed 12345: failed no sign of life" in text
    assert "done, 6 failed" in text


# -- the replication of a published table ----------------------------------------------------------

KNOWN = {
    "Transformer": "mh-attention(h2) swiglu",
    "mLSTM": "mlstm-v1(h1) swiglu",
    "Mamba": "mamba mamba",
    "GLA": "gla(h1) swiglu",
    "sLSTM": "slstm swiglu",
}


@pytest.fixture
def record(load):
    return load("mad_record")


def small(record, **changes):
    return replace(record.REDUCED, layers=KNOWN, **changes)


def test_the_published_averages_are_those_of_the_source(record):
    averages = record.published([find(task).name for task in record.TASKS])
    expected = (0.808, 0.764, 0.751, 0.747, 0.746, 0.731, 0.712, 0.697, 0.679, 0.648)
    assert list(averages.values()) == pytest.approx(expected, abs=1.1e-3)
    assert record.LAYERS.keys() >= averages.keys()


@pytest.mark.slow
def test_the_replication_compares_ranks_of_the_shared_rows_only(record, tmp_path):
    worth = {"Transformer": 0.9, "mLSTM": 0.7, "Mamba": 0.6, "GLA": 0.1, "sLSTM": 1.0}
    table = small(record)
    ranking = _standing(table, tmp_path, change=_with(table, worth))
    result = record.comparison(table, ranking)
    assert result["shared"] == ["Transformer", "mLSTM", "Mamba", "GLA"]
    assert result["spearman"][0] == result["kendall"][0] == 1.0
    assert result["mlstm"]["difference"] == pytest.approx(0.7 - 4.481 / 6)
    text = record.markdown(table, ranking, parallel=2)
    assert "| mLSTM | `mlstm-v1(h1) swiglu` | 0.747 | **0.700** ± 0.000 |" in text
    assert "| sLSTM | `slstm swiglu` | - | **1.000** ± 0.000 |" in text
    assert "Spearman of the 4 shared rows: 1.00 (95 % 1.00 to 1.00" in text
    assert f"`{record.FULL.command}`" in text


@pytest.mark.slow
def test_an_order_that_few_rows_show_cannot_be_told(record, tmp_path):
    worth = {"Transformer": 0.9, "mLSTM": 0.6, "Mamba": 0.7, "GLA": 0.1, "sLSTM": 1.0}
    table = small(record)
    lines = record.answers(table, _standing(table, tmp_path, change=_with(table, worth)))
    assert lines[0].endswith("at least 0.9: cannot be told")
    assert lines[-1].endswith("other settings, so no replication of the score")


@pytest.mark.parametrize(
    ("scores", "answer"),
    [((0.747, 0.747), "yes"), ((0.70, 0.70), "no"), ((0.72, 0.78), "cannot be told")],
)
def test_mlstm_is_near_the_published_score_if_its_interval_is(record, tmp_path, scores, answer):
    seeds = (0, 1)
    table = replace(small(record), layers={"mLSTM": "mlstm-v1(h1)"}, seeds=seeds)
    worth = dict(zip(seeds, scores, strict=True))

    def change(record):
        return replace(record, acc_macro=worth[record.seed])

    ranking = _standing(table, tmp_path, change=change)
    (line,) = record.answers(replace(table, suite="full"), ranking)
    assert line.endswith(f"within 0.02: {answer}")


def test_a_layer_that_is_missing_here_is_an_error_and_makes_nothing(
    record, tmp_path, monkeypatch, capsys
):
    table = replace(record.QUICK, layers={"X": "nonesuch swiglu"})
    monkeypatch.setattr(record, "QUICK", table)
    monkeypatch.setattr("sys.argv", ["mad_record.py", "--quick", "--studies", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        record.main()
    assert left.value.code == 2
    assert "no layer 'nonesuch'" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rates", ""), "--rates is ''; give step sizes above 0"),
        (("--rates", "2e-3,1e-3"), "which does not ascend; give 0.001,0.002"),
        (("--seeds", ""), "--seeds is ''; give a number"),
    ],
)
def test_a_list_that_is_empty_or_unsorted_is_an_error_and_makes_nothing(
    record, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.setattr("sys.argv", ["mad_record.py", *words, "--studies", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        record.main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def _with(table: Any, worth: dict[str, float]) -> sample.Change:
    def change(record):
        return replace(record, acc_macro=worth[table.names[record.candidate]])

    return change


def _standing(table: Any, root: Path, *, change=sample.unchanged, but=lambda record: True) -> Any:
    """The table's study with every accuracy 0.5."""
    store = open_store(table.study, str(root), "table")
    planning = Planning(table.study)
    for candidate in table.names:
        for run in planning.runs(candidate):
            record = change(
                replace(
                    sample.RECORD,
                    key=run.key(),
                    candidate=candidate,
                    config=run.to_dict(),
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
        return 8e-3, replace(failed("", seconds=1.0), by_length=by_length)

    for errors, met in ((0.0, True), (1e-5, False)):
        findings = claims.Findings()
        held, lost = [ended(1.0, 1.0), ended(1.0, 1.0 - errors)], [ended(0.9, 0.5)]
        script.claim(findings, {("S3", "[mLSTM, sLSTM]"): held, ("parity", script.MLSTM): lost})
        assert [claim.met for claim in findings.claims] == [met, True]


@pytest.mark.parametrize(
    ("right", "chosen", "tried"),
    [((1.0, 0.0), 8e-3, 1), ((0.5, 0.9), 4e-3, 2), ((0.5, 0.4), 8e-3, 2)],
)
def test_states_are_trained_at_the_step_size_that_validation_rows_prefer(
    load, monkeypatch, right, chosen, tried
):
    script, rates = load("state_tracking"), []

    def train(config):
        assert config.protocol.select == "val"
        rates.append(config.protocol.lr)
        val = right[len(rates) - 1]
        return replace(failed("", seconds=1.0), val_token=val, acc_token=1 - val)

    monkeypatch.setattr(script, "train", train)
    lr, result = script.trained("S3", "[sLSTM]", 0, "torch:cpu")
    assert (lr, result.val_token, len(rates)) == (chosen, max(right[:tried]), tried)


def test_a_rung_has_the_width_the_backend_and_the_end_of_its_script(load, monkeypatch):
    script, trained = load("mad_rungs"), []

    def train(config, *, worker_options):
        trained.append(config)
        assert worker_options == {"kernels": "reference"}
        return replace(failed("", seconds=1.0), acc_macro=len(trained))

    monkeypatch.setattr(script, "train", train)
    end = script.accuracy("mlstm swiglu", "mlx:cpu", "reference", seed=7, steps=40, dim=32)
    assert end == 1.5
    assert [one.task for one in trained] == list(script.TASKS)
    for one in trained:
        assert (one.dim, one.workers, one.seed) == (32, "mlx:cpu", 7)
        assert (one.protocol.steps, one.protocol.eval_every) == (40, 40)
