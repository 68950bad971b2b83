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


def test_every_second_of_a_step_belongs_to_one_part():
    assert shares([CPU]) == {
        "forward": 0.3, "backward": 0.5, "optimizer": 0.06, "read": 0.01, "write": 0.04,
        "wait": 0.07, "other": 0.02,
    }  # fmt: skip
    assert shares([GPU])["gradient"] == 0.9  # whose passes are computed at once
    assert list(shares([CPU, GPU])) == list(PARTS)
    assert sum(shares([CPU, GPU]).values()) == pytest.approx(1.0, abs=1e-3)
    assert (shares([{}]), shares([{}, CPU])) == ({}, shares([CPU]))  # no recorded parts


def test_show_and_the_page_have_the_shares_of_the_run_and_of_each_worker(tmp_path, capsys):
    metrics = [{**line, "first_step_s": 3.25} for line in lines(5)]
    for line in metrics:
        line["workers"] = [
            worker | of for worker, of in zip(line["workers"], (CPU, GPU), strict=True)
        ]
    run = write_run(tmp_path, metrics=metrics)
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
