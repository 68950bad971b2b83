"""`--report-to`: what trackers get, and that none of them can stop a run."""

import importlib.util
import json
import os
import signal
import sqlite3
import sys
from unittest.mock import Mock

import pytest

from mlxhog.display import trackers
from mlxhog.display.record import changed
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.training.supervisor.training import train
from tests.processes import python
from tests.training.small import Messages, small_config


class Fake:
    """A tracker that keeps what it gets, or fails."""

    def __init__(self, run, fails=False):
        self.run, self.fails, self.values, self.ended = run, fails, [], []

    def write(self, points):
        if self.fails:
            raise ValueError("no space\nleft")
        self.values += [(step, tag) for step, values in points for tag in values]

    def close(self, *, failed):
        self.ended.append(failed)


def test_a_tracker_that_fails_is_left_out_with_one_line_and_the_others_go_on(tmp_path, monkeypatch):
    made = []
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(
            trackers.TRACKERS,
            name,
            lambda run, fails=name == "trackio": made.append(Fake(run, fails)) or made[-1],
        )
    monkeypatch.setattr(trackers, "require", lambda names: None)
    told = Messages()
    options = {"report_to": "wandb, trackio", "eval_every": "1h"}
    first = train(small_config(tmp_path, **options), observer=told)
    assert [one for one in told if "no more metrics" in one] == [
        "trackio gets no more metrics: no space left; training continues"
    ]
    works, broken = made
    assert (works.ended, broken.ended) == ([False], [])
    assert {tag for _, tag in works.values} == {
        "train/loss", "train/bits_per_byte", "train/lr", "train/epoch", "train/tokens_per_s",
        "eval/loss", "eval/bits_per_byte", "final/bits_per_byte",
    }  # fmt: skip
    assert works.run.config["steps"] == 20
    assert changed({"steps": 3, "cluster_token": "secret"}) == {"steps": 3}

    def interrupt(progress):
        if progress.step > 20:
            signal.raise_signal(signal.SIGINT)

    options = {**options, "steps": 100_000, "resume": first.run}
    assert train(small_config(tmp_path, **options), observer=interrupt).status == "interrupted"
    again = made[2]
    assert (again.run.id, again.run.name) == (works.run.id, works.run.name)
    assert (again.run.first_step, again.run.resumed, again.ended) == (20, True, [False])


def test_a_resume_that_does_not_begin_to_train_tells_trackers_of_no_lost_steps(
    tmp_path, monkeypatch
):
    made = []
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda run: made.append(run) or Fake(run))
    monkeypatch.setattr(trackers, "require", lambda names: None)
    options = {"report_to": "wandb", "eval_every": "1h"}
    first = train(small_config(tmp_path, **options))
    more = small_config(tmp_path, **options, resume=first.run, steps=100)
    ended = train(more, observer=lambda progress: signal.raise_signal(signal.SIGINT))
    assert (ended.status, ended.steps, len(made)) == ("interrupted", first.steps, 1)


def test_wandb_sends_none_of_its_errors_and_a_program_keeps_its_environment(tmp_path, monkeypatch):
    seen = []
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)

    def init(**options):
        seen.append(os.environ["WANDB_ERROR_REPORTING"])
        return Mock()

    monkeypatch.setitem(sys.modules, "wandb", Mock(init=init))
    run = trackers.TrackedRun(
        folder=tmp_path, name="a", id="a", config={}, first_step=0, resumed=False
    )
    for value, inside in ((None, "false"), ("true", "true")):
        if value is not None:
            monkeypatch.setenv("WANDB_ERROR_REPORTING", value)
        trackers.TRACKERS["wandb"](run).close(failed=False)
        assert (seen.pop(), os.environ.get("WANDB_ERROR_REPORTING")) == (inside, value)


def test_a_missing_package_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trackio" else find(name)
    )
    with pytest.raises(EnvironmentLacks, match="python -m pip install trackio"):
        train(small_config(tmp_path, report_to="tensorboard,trackio"))
    assert not [*tmp_path.glob("*/*/checkpoints")]


def test_report_to_takes_a_list_and_refuses_what_it_does_not_know(tmp_path):
    config = small_config(tmp_path, report_to=["wandb", "tensorboard"])
    assert config.trackers == ("wandb", "tensorboard")
    with pytest.raises(ConfigError, match="report_to is 'none,wandb'"):
        small_config(tmp_path, report_to="none,wandb")
    with pytest.raises(ConfigError, match="did you mean 'trackio'"):
        small_config(tmp_path, report_to="trackoi")


OWN_RUN = """
import sys, trackio
from mlxhog import TrainConfig, train
trackio.init(project="mine", embed=False, auto_log_gpu=False, auto_log_cpu=False)
own = lambda progress: trackio.log({"own": progress.step})
train(TrainConfig(**eval(sys.argv[1])), observer=own)
trackio.log({"own": 3})
trackio.finish()
"""


@pytest.mark.slow
def test_a_program_s_own_run_of_trackio_stays(tmp_path):
    small_config(tmp_path)  # its files
    options = {
        "model": str(tmp_path / "small.yaml"), "data": str(tmp_path / "text"), "steps": 3,
        "workers": "mlx:cpu", "seq_len": 32, "batch_size": 2, "report_to": "trackio",
        "runs_dir": str(tmp_path / "runs"),
    }  # fmt: skip
    done = python("-c", OWN_RUN, repr(options), TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    for project, own in (("mine", True), ("mlxhog", False)):
        with sqlite3.connect(tmp_path / "trackio" / f"{project}.db") as base:
            rows = base.execute("select metrics from metrics").fetchall()
        base.close()
        assert rows
        assert {b"own" in metrics for (metrics,) in rows} == {own}


@pytest.mark.slow
def test_the_real_ones_continue_a_run_offline_and_leave_no_line_and_no_process(tmp_path):
    small_config(tmp_path)  # its files
    line = ["train", "--report-to", "wandb,trackio", "--json", "--steps", "3", "--name", "notes"]
    line += [
        "--model",
        tmp_path / "small.yaml",
        "--data",
        tmp_path / "text",
        "--workers",
        "mlx:cpu",
    ]
    line += ["--seq-len", "32", "--batch-size", "2", "--runs-dir", tmp_path / "runs"]
    for more in ([], ["--resume", "latest"]):
        if more:
            line = ["train", *more, "--steps", "3", "--json", "--runs-dir", tmp_path / "runs"]
        done = python("-m", "mlxhog", *map(str, line), TRACKIO_DIR=str(tmp_path / "trackio"))
        assert done.returncode == 0, done.stderr
        assert all(json.loads(each) for each in done.stdout.splitlines())
    of_wandb = sorted((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(of_wandb) == 2
    assert len({path.name for path in of_wandb}) == 1  # its name is the run's id
    for path in of_wandb:
        assert b"eval/loss" in path.read_bytes()
    with sqlite3.connect(tmp_path / "trackio" / "mlxhog.db") as base:
        rows = base.execute("select run_id, step, metrics from metrics").fetchall()
    base.close()
    assert len({run for run, *_ in rows}) == 1
    assert {3, 6} <= {step for _, step, metrics in rows if b"eval/loss" in metrics}
