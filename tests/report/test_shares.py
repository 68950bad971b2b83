"""Where the time goes: the parts of a step add up, and every place shows the same shares."""

import json

import pytest

from mlxhog import cli
from mlxhog.report.record import RunRecord
from mlxhog.report.shares import PARTS, in_words, rows, shares
from tests.report.sample_run import lines, write_run

CPU = {
    "read_s": 1.0, "compute_s": 80.0, "forward_s": 30.0, "apply_s": 10.0, "optimizer_s": 6.0,
    "wait_s": 7.0, "other_s": 2.0,
}  # fmt: skip
GPU = {**CPU, "forward_s": 0.0, "compute_s": 180.0}


def timed_lines(n):
    """Metrics whose first worker has a CPU, and whose second one a GPU."""
    for line in lines(n):
        for worker, seconds in zip(line["workers"], (CPU, GPU), strict=True):
            worker |= seconds
        yield {**line, "first_step_s": 3.25}


def test_every_second_of_a_step_belongs_to_one_part():
    assert shares([CPU]) == {
        "forward": 0.3, "backward": 0.5, "optimizer": 0.06, "read": 0.01, "write": 0.04,
        "wait": 0.07, "other": 0.02,
    }  # fmt: skip


def test_a_gradient_whose_passes_are_computed_at_once_is_one_part():
    assert shares([GPU])["gradient"] == 0.9
    assert list(shares([CPU, GPU])) == list(PARTS)
    assert sum(shares([CPU, GPU]).values()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("worker", [{}, dict.fromkeys(CPU, 0)])
def test_a_worker_without_recorded_parts_has_no_shares(worker):
    assert shares([worker]) == {}
    assert shares([worker, CPU]) == shares([CPU])


@pytest.mark.parametrize("value", [None, "8", True, -1.0, float("nan"), float("inf"), [2.0]])
def test_a_damaged_number_counts_as_no_time(value):
    assert shares([{**CPU, "wait_s": value}]) == shares([{**CPU, "wait_s": 0.0}])


def test_show_and_the_page_have_the_shares_of_the_run_and_of_each_worker(tmp_path, capsys):
    run = write_run(tmp_path, metrics=timed_lines(5))
    assert cli.main(["show", str(run.directory), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    expected = {"all workers": [CPU, GPU], "1 torch:cpu": [CPU], "2 torch:cpu": [GPU]}
    assert facts["shares"] == {name: shares(some) for name, some in expected.items()}
    assert facts["first_step_s"] == 3.25
    assert cli.main(["show", str(run.directory)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "first step after 3.2 s" in words
    for some in expected.values():
        assert ", ".join(in_words(shares(some))) in words
    table = rows(RunRecord(run).shares())
    assert [row[0] for row in table] == ["", *expected]
    assert table[2][:3] == ["1 torch:cpu", "30 %", "50 %"]
