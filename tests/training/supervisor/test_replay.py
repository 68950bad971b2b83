"""A recorded run of real processes, killed ones included, is replayed bit for bit or refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from mlxhog import train
from mlxhog.arena import event_log
from mlxhog.arena.event_log import Begin, RecordedStep
from mlxhog.arena.requests import Refused, ask
from mlxhog.base import machine
from mlxhog.base.machine import Machine
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.errors import CheckpointError, DataError, EnvironmentLacks, RunError
from mlxhog.training.supervisor import replay
from tests.soak.killer import Killer
from tests.training.asking import endless, trained, until
from tests.training.small import small_config
from tests.training.worker.test_tables import SET


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two workers with shared moments; one was killed."""
    config = small_config(
        tmp_path_factory.mktemp("recorded"), workers="mlx:cpu*2", determinism="record", steps=200,
        optimizer="muon", strategy="auto", embedding_lr=4, head_lr=2, set=SET,
    )  # fmt: skip
    result = Killer(kills=1, seed=1).train(config)  # which draws the first worker
    assert result.restarts == 1
    return result


@pytest.fixture
def copy(recorded, tmp_path):
    """A copy of the recorded run's folder that tests may damage."""
    return Path(shutil.copytree(recorded.run, tmp_path / Path(recorded.run).name))


@pytest.mark.slow
def test_a_recorded_run_with_a_killed_worker_replays_to_its_hashes(recorded, capsys):
    assert main(["replay", recorded.run, "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["equal"]
    assert outcome["deaths"] == 1
    assert outcome["steps"] >= 200
    assert outcome["hashes"] > 4


@pytest.mark.slow
def test_mlx_and_torch_workers_with_moments_of_their_own_replay(tmp_path):
    muon = {"optimizer": "muon", "moments": "private", "orthogonalization_device": "worker"}
    config = small_config(
        tmp_path, workers="mlx:cpu,torch:cpu", determinism="record", steps=40, set=SET, **muon
    )
    outcome = replay.replay(Run(Path(train(config).run)))
    assert outcome.difference is None
    assert outcome.workers == ("mlx:cpu", "torch:cpu")
    assert outcome.steps == 40


@pytest.mark.slow
def test_the_first_difference_is_named_by_worker_and_step(copy, capsys):
    logs = {slot: [*event_log.read(event_log.worker_path(copy, slot))] for slot in (1, 2)}
    slot = max(logs, key=lambda slot: len(logs[slot]))  # the other may have no step
    steps = [record for record in logs[slot] if not isinstance(record, Begin)]  # torn ones too
    number, step = next(
        (n, step)
        for n, step in enumerate(steps, 1)
        if n > 10 and isinstance(step, RecordedStep) and step.applied
    )
    changed = replace(step, numbers=step.numbers._replace(norm=3.5))
    logs[slot][logs[slot].index(step)] = changed
    event_log.worker_path(copy, slot).write_bytes(b"".join(map(event_log.encode, logs[slot])))
    assert main(["replay", str(copy)]) == 1
    shown = capsys.readouterr().out
    assert f"differs first at worker {slot} (mlx:cpu), its step {number}" in shown
    assert "recorded was 3.5" in shown


def cut(path):
    os.truncate(path, path.stat().st_size - 5)


def header(directory, **values):
    path = directory / event_log.FOLDER / "header.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda run: shutil.rmtree(run / "replay"), RunError, "was not recorded; record one with"),
        (lambda run: (run / "replay" / "end.json").unlink(), RunError, "has no end"),
        (lambda run: cut(event_log.worker_path(run, 1)), RunError, "is cut or damaged: its"),
        (lambda run: header(run, layout_sha256="0"), CheckpointError, "another layout"),
        (lambda run: header(run, tokens_sha256="0" * 64), DataError, "other text|digest 0000"),
        (lambda run: header(run, initial_sha256={"params": ""}), CheckpointError, "began with"),
        (lambda run: header(run, versions={"numpy": "1.0"}), EnvironmentLacks, r"numpy 1\.0"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_replayed_is_refused_with_the_reason(copy, spoil, error, message):
    spoil(copy)
    with pytest.raises(error, match=message):
        replay.replay(Run(copy))


@pytest.mark.slow
def test_a_recorded_run_resumes_only_without_a_record_which_stays(copy, capsys):
    more = ["train", "--resume", str(copy), "--steps", "5", "--quiet"]
    assert main(more) == 2
    assert "a record begins with its run; add --determinism none" in capsys.readouterr().err
    assert main([*more, "--determinism", "none"]) == 0
    assert replay.replay(Run(copy)).difference is None


@pytest.mark.slow
def test_workers_that_join_and_leave_a_recorded_run_are_replayed(tmp_path):
    mac = Machine("macos", "arm64", 4, 8 << 30, "Apple M4", frozenset({"mlx"}))

    def join_and_leave(directory):
        with (
            mock.patch.object(machine, "here", return_value=mac),
            pytest.raises(Refused, match="mlx:gpu is not known to compute the same bits"),
        ):
            ask(directory, "join", workers="mlx:gpu")
        ask(directory, "join", workers="mlx:cpu")
        until(directory, lambda workers: 2 in workers and workers[2]["steps"] >= 5)
        ask(directory, "leave", worker=1)
        until(directory, lambda workers: workers[1]["state"] == "left")
        steps = until(directory, lambda workers: True)[2]["steps"]
        until(directory, lambda workers: workers[2]["steps"] > steps + 2)

    config = endless(
        tmp_path, workers="mlx:cpu", max_workers=2, determinism="record", optimizer="muon"
    )
    run = Run(Path(trained(config, join_and_leave).run))
    outcome = replay.replay(run)
    assert outcome.difference is None
    assert [len(replay.processes(run.directory, slot)) for slot in (1, 2)] == [1, 1]
