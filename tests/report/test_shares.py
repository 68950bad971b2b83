"""Where the time goes: the parts of a step add up."""

import pytest

from mlxhog.report.shares import PARTS, rows, shares

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
    table = rows({"all": shares([CPU, GPU]), "1 torch:cpu": shares([CPU]), "none": {}})
    assert [row[:3] for row in table[::2]] == [["", *PARTS[:2]], ["1 torch:cpu", "30 %", "50 %"]]
