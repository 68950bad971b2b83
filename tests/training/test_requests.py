"""Requests to a run: it stops, saves, writes a sample, and refuses unknown requests."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.arena.requests import Refused, ask
from mlxhog.checkpoint import checkpoint, run
from mlxhog.cli import main
from tests.training.asking import Client, endless, trained
from tests.training.small import small_config


@pytest.mark.slow
def test_stop_ends_the_run_with_a_checkpoint_from_which_it_resumes(tmp_path):
    config = endless(tmp_path, workers="mlx:cpu*2")
    result = trained(config, lambda directory: None)
    assert (result.status, result.seconds < 100.0) == ("interrupted", True)
    assert result.checkpoint is not None
    steps = checkpoint.load(Path(result.checkpoint)).state["used"]["steps"]
    assert steps == result.steps >= 3
    resumed = train(replace(config, resume=result.run, steps=5, time=None))
    assert (resumed.status, resumed.steps) == ("done", steps + 5)


@pytest.mark.slow
def test_the_command_stops_the_latest_run(tmp_path, capsys):
    config = endless(tmp_path)
    client = Client(config, lambda _: main(["stop", "latest", "--out", config.out, "--json"]))
    assert train(config, observer=client).status == "interrupted"
    client.finish()
    answer = json.loads(capsys.readouterr().out)
    assert "saves a checkpoint" in answer["message"]


@pytest.mark.slow
def test_a_checkpoint_that_is_asked_for_is_there_with_the_answer(tmp_path):
    answers = []

    def save(directory):
        answers.append(ask(directory, "checkpoint"))
        answers.append(checkpoint.load(Path(answers[0]["path"])).state["used"]["steps"])

    result = trained(endless(tmp_path, workers="mlx:cpu*2"), save)
    assert 3 <= answers[1] <= result.steps


@pytest.mark.slow
def test_a_sample_that_is_asked_for_is_written(tmp_path):
    config = endless(tmp_path, sample_every="1h")

    def sample(directory):
        ask(directory, "sample")
        new_run = run.Run(directory)
        while not new_run.last_sample():
            ask(directory, "status")

    trained(config, sample)


@pytest.mark.slow
def test_status_names_the_activity_and_the_workers(tmp_path):
    answers = []
    trained(endless(tmp_path), lambda directory: answers.append(ask(directory, "status")))
    assert answers[0]["doing"] == "training"
    assert answers[0]["step"] >= 3
    assert [(one["slot"], one["backend"]) for one in answers[0]["workers"]] == [(1, "mlx:cpu")]


@pytest.mark.slow
def test_unknown_requests_are_refused_and_training_continues(tmp_path):
    def ask_nonsense(directory):
        with pytest.raises(Refused, match="no request 'explode'; a run takes status, stop"):
            ask(directory, "explode")
        with pytest.raises(Refused, match="no field 'step'"):
            ask(directory, "checkpoint", step=3)

    assert trained(endless(tmp_path), ask_nonsense).status == "interrupted"


@pytest.mark.slow
def test_a_run_that_has_ended_is_named_as_such(tmp_path, capsys):
    config = small_config(tmp_path, steps=2)
    train(config)
    assert main(["stop", "latest", "--out", config.out]) == 2
    assert "is not running" in capsys.readouterr().err
