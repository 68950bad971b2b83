"""Races of machines on a cable: arms that can be, faults that end, predictions that hold."""

from __future__ import annotations

import json
import signal
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlxhog import TrainConfig


@pytest.fixture(scope="module")
def across(load: Any) -> ModuleType:
    module: ModuleType = load("across_machines")
    return module


def test_every_arm_has_settings_and_is_a_run_that_can_be(across: ModuleType) -> None:
    for scale in (across.QUICK, across.FULL):
        for optimizer in scale.optimizers:
            for arm in ("hogwild", "sync"):
                options = across.member_options(scale.target, optimizer, arm, 1, scale.seconds)
                assert options["time"] == scale.seconds
                TrainConfig(**options, strategy=arm)
    for fault in across.FAULTS.values():
        TrainConfig(workers="torch:cpu", slow=fault.slow)


def test_a_fault_is_undone_unless_it_kills(
    across: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fault in across.FAULTS.items():
        done: list[Any] = []
        monkeypatch.setattr(across.os, "killpg", lambda pid, number, done=done: done.append(number))
        cable = SimpleNamespace(
            unplug=lambda m, done=done: done.append("unplug"),
            plug=lambda m, done=done: done.append("plug"),
        )
        across.happen(fault, cable, SimpleNamespace(pid=1), 0.0)
        assert (done[0] == "unplug") == fault.unplugs
        assert (signal.SIGSTOP in done) == (signal.SIGCONT in done)
        assert (signal.SIGKILL in done) == fault.returns, name
        assert "plug" in done


def test_a_member_that_fails_or_hangs_is_named_and_none_is_left(
    across: ModuleType, tmp_path: Any
) -> None:
    def popen(machine: int, words: Any, **more: Any) -> Any:
        return across.subprocess.Popen(words, start_new_session=True, text=True, **more)

    members = across.Members(SimpleNamespace(popen=popen), across.QUICK.target, tmp_path)
    answers = members.start(0, ["sh", "-c", "echo other words; echo '{\"seconds\": 1}'"])
    assert members.answer(answers, 10) == {"seconds": 1}
    with pytest.raises(SystemExit, match="exit code 3"):
        members.answer(members.start(0, ["sh", "-c", "exit 3"]), 10)
    hangs = members.start(0, ["sleep", "100"])
    with pytest.raises(SystemExit, match="has not ended"):
        members.answer(hangs, 0.1)
    members.end()
    assert hangs.returncode == -signal.SIGKILL


def test_bytes_until_the_loss_are_a_share_of_all(across: ModuleType) -> None:
    outcome = across.Outcome(seconds=20.0, tokens=1e6, sent=600, trained_s=60.0)
    assert outcome.sent_until == pytest.approx(200)


def test_predictions_are_named_so_and_more_machines_compute_more(
    across: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["across_machines.py", "--quick", "--only", "predicted"])
    monkeypatch.setattr(across, "ROUNDS", 4)
    assert across.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    for rows in line["predicted, not measured"].values():
        rates = [row["gradients_per_s"] for row in rows]
        assert rates == sorted(rates)
        assert all(row["gradients_per_s"] > row["sync_gradients_per_s"] for row in rows)
        assert all(row["sent_mb_per_s"] < row["sync_sent_mb_per_s"] for row in rows)
