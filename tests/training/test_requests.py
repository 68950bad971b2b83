"""Requests to a run: it stops, saves, writes a sample, and refuses unknown requests."""

from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.arena.requests import Refused, ask
from mlxhog.checkpoint import checkpoint, run
from mlxhog.cli import main
from tests.training.asking import endless, trained
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
def test_a_run_that_has_ended_is_named_as_such(tmp_path, capsys):
    config = small_config(tmp_path, steps=2)
    train(config)
    assert main(["stop", "latest", "--out", config.out]) == 2
    assert "is not running" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_answers_status_saves_samples_and_refuses_what_it_does_not_know(tmp_path):
    answers = []

    def ask_all(directory):
        answers.append(ask(directory, "status"))
        answers.append(ask(directory, "checkpoint"))
        answers.append(checkpoint.load(Path(answers[1]["path"])).state["used"]["steps"])
        ask(directory, "sample")
        while not run.Run(directory).last_sample():
            ask(directory, "status")
        with pytest.raises(Refused, match="no request 'explode'; a run takes status, stop"):
            ask(directory, "explode")
        with pytest.raises(Refused, match="no field 'step'"):
            ask(directory, "checkpoint", step=3)

    result = trained(endless(tmp_path, workers="mlx:cpu*2", sample_every="1h"), ask_all)
    status, _, saved_at = answers
    assert (status["doing"], status["step"] >= 3) == ("training", True)
    assert [one["slot"] for one in status["workers"]] == [1, 2]
    assert 3 <= saved_at <= result.steps
