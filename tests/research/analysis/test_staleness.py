"""Staleness: summaries of histograms, of recorded runs and of a short run."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.checkpoint.run import Run
from mlxhog.experiments import short_runs
from mlxhog.research.analysis.advice import of_run, probe_run
from mlxhog.research.simulator import Staleness
from tests.pairs import each_of
from tests.training.small import small_config


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200))
def test_a_summary_is_that_of_the_values(values):
    observed = Staleness.of("w", Counter(values))
    assert (observed.name, observed.steps, observed.max) == ("w", len(values), max(values))
    assert observed.mean == pytest.approx(np.mean(values))
    ordered = sorted(values)
    assert observed.p50 == ordered[(len(values) + 1) // 2 - 1]
    assert observed.p99 == ordered[-(-99 * len(values) // 100) - 1]


def metrics(folder, *lines):
    run = Run(folder)
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def line(**histograms):
    """A line of metrics, by the staleness of each worker."""
    workers = [
        {"slot": slot, "backend": backend, "steps": sum(histogram.values()),
         "max_staleness": max(histogram, default=0), "staleness": histogram}
        for slot, (backend, histogram) in enumerate(histograms.items(), start=1)
    ]  # fmt: skip
    every = sum((Counter(histogram) for histogram in histograms.values()), Counter())
    return {"step": 60, "lost_update_rate": 0.0, "staleness": every, "workers": workers}


def test_each_worker_of_a_run_has_its_own_distribution_in_the_newest_command(tmp_path):
    assert of_run(metrics(tmp_path), "racy") is None
    run = metrics(tmp_path, line(mlx={9: 30}, torch={4: 10}), line(mlx={0: 39, 1: 1}, torch={8: 4}))
    assert of_run(run, "lossless")["by_worker"] == [
        {"name": "1 mlx", "steps": 40, "mean": 1 / 40, "p50": 0, "p99": 1, "max": 1},
        {"name": "2 torch", "steps": 4, "mean": 8.0, "p50": 8, "p99": 8, "max": 8},
    ]


@each_of("newest", [{}, {0: 2}], ids=["no step", "two steps"])
def test_a_resumed_command_of_few_steps_says_nothing_of_the_staleness_of_a_run(tmp_path, newest):
    trained = line(mlx={0: 20, 1: 10}, torch={1: 30})
    assert of_run(metrics(tmp_path, trained), "lossless")["all"]["mean"] == 40 / 60
    assert of_run(metrics(tmp_path, trained, line(mlx=newest, torch={})), "lossless") is None


@each_of(
    "own",
    [
        {"determinism": "record"}, {"cluster": "127.0.0.1:8600"}, {"follow": "texts"},
        {"inject_stragglers": "3=2", "workers": "auto"}, {"report_to": "tensorboard"},
    ],
)  # fmt: skip
def test_a_probe_is_plain_where_its_workers_are_and_reports_to_no_tracker(
    tmp_path, monkeypatch, own
):
    settings = []

    def train(config, observer):
        settings.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(short_runs, "train", train)
    config = small_config(tmp_path, **own)
    with pytest.raises(KeyboardInterrupt):
        probe_run(config, workers="mlx:cpu*2", seconds=1.0, tell=print)
    (one,) = settings
    assert (one.determinism, one.trackers) == ("none", ())
    assert (one.cluster, one.follow, one.inject_stragglers) == (None, None, None)


@pytest.mark.slow
def test_a_probe_shows_two_racy_workers_and_leaves_nothing_behind(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    # settings under which a lock-free run of two workers would be refused
    config = small_config(tmp_path, strategy="sync", read="live", max_workers=1, steps=5)
    messages = []
    observed = probe_run(config, workers="mlx:cpu*2", seconds=0.5, tell=messages.append)
    assert [observed[name] for name in ("source", "workers", "write")] == ["probe", 2, "racy"]
    assert observed["all"]["steps"] == sum(observed["histogram"].values())
    assert len(observed["by_worker"]) == 2  # with a step of each at least
    assert 0 <= observed["lost_update_rate"] < 1
    assert messages
    assert not list(scratch.glob("mlxhog-short-*"))
    assert not Path(config.runs_dir).exists()
