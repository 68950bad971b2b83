"""Races of machines on a cable: arms that can be, faults that end, predictions that hold."""

from __future__ import annotations

import json
import signal
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlxhog import TrainConfig


@pytest.fixture(scope="module")
def across(load: Any) -> ModuleType:
    module: ModuleType = load("across_machines")
    return module


@pytest.fixture(scope="module")
def races(across: ModuleType) -> ModuleType:
    return import_module("cluster.races")


def test_every_arm_has_settings_and_is_a_run_that_can_be(across: ModuleType) -> None:
    cluster = {"name": "torchft", "address": "10.77.0.1:8600"}
    for scale in (across.QUICK, across.FULL):
        for optimizer in scale.optimizers:
            for arm in across.ARMS.values():
                options = across.member_options(scale.target, optimizer, arm.tuned_as, 1, 5.0)
                more = {"cluster": cluster | arm.rounds} if arm.machines > 1 else {}
                TrainConfig(**options, **more, **arm.options)
    for fault in across.FAULTS.values():
        TrainConfig(workers="torch:cpu", slow=fault.slow)


def test_a_measurement_continues_behind_the_trainings_that_it_kept(
    across: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[dict[str, Any]] = []

    def train(
        machines: int, target: Any, options: dict[str, Any], fault: Any, **more: float
    ) -> Any:
        trained.append(options)
        return across.Outcome(float("inf"), 1e6, 1.5, 600, 60.0, 0, 0.0)

    monkeypatch.setattr(across, "train", train)
    arms, path = across.arms_of(["outer"]), tmp_path / "kept.jsonl"
    first = across.race(arms, across.FULL, "muon", across.Kept(path))
    assert len(trained) == len(arms) * len(across.FULL.seeds)
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    trained.clear()
    assert across.race(arms, across.FULL, "muon", across.Kept(path)) == first
    assert [one["seed"] for one in trained] == [across.FULL.seeds[-1]]


@pytest.mark.slow
def test_every_part_compares_arms_that_are_trained_once(
    across: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[int] = []

    def train(machines: int, *more: Any, **others: Any) -> Any:
        trained.append(machines)
        return across.Outcome(20.0, 1e6, 1.5, 6 * 10**6, 60.0, 0, 0.0)

    monkeypatch.setattr(across, "train", train)
    monkeypatch.setattr(across, "all_reduce", lambda machines, floats: (0.5, 7e6))
    monkeypatch.setattr("sys.argv", ["across_machines.py", "--quick", "--only", *across.PAIRS])
    assert across.main() == 3  # one seed cannot tell
    assert len(trained) == len(across.ARMS)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name, other in [pair for pairs in across.PAIRS.values() for pair in pairs]:
        assert any(f"{name} less {other}" in what for what in line)
    assert [claim["limit"] for claim in line["claims"]] == [1.25, 50.0] + [1.0] * 4


def test_a_fault_is_undone_unless_it_kills(
    races: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fault in races.FAULTS.items():
        done: list[Any] = []
        monkeypatch.setattr(races.os, "killpg", lambda pid, number, done=done: done.append(number))
        cable = SimpleNamespace(
            unplug=lambda m, done=done: done.append("unplug"),
            plug=lambda m, done=done: done.append("plug"),
        )
        races.happen(fault, cable, SimpleNamespace(pid=1), 0.0)
        assert (done[0] == "unplug") == fault.unplugs
        assert (signal.SIGSTOP in done) == (signal.SIGCONT in done)
        assert (signal.SIGKILL in done) == fault.returns, name
        assert "plug" in done


def test_a_member_that_fails_or_hangs_is_named_and_none_is_left(
    races: ModuleType, tmp_path: Any
) -> None:
    def popen(machine: int, words: Any, **more: Any) -> Any:
        return races.subprocess.Popen(words, start_new_session=True, text=True, **more)

    members = races.Members(SimpleNamespace(popen=popen), None, tmp_path)
    answers = members.start(0, ["sh", "-c", "echo other words; echo '{\"seconds\": 1}'"])
    assert members.answer(answers, 10) == {"seconds": 1}
    with pytest.raises(SystemExit, match="exit code 3"):
        members.answer(members.start(0, ["sh", "-c", "exit 3"]), 10)
    hangs = members.start(0, ["sleep", "100"])
    with pytest.raises(SystemExit, match="has not ended"):
        members.answer(hangs, 0.1)
    members.end()
    assert hangs.returncode == -signal.SIGKILL


def test_bytes_until_the_loss_are_a_share_of_all(races: ModuleType) -> None:
    outcome = races.Outcome(
        20.0, 1e6, last_bits=1.5, sent=600, trained_s=60.0, lost=0, round_tokens=0.0
    )
    assert outcome.sent_until == pytest.approx(200)


@pytest.mark.slow
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
