"""A server of a run that trains: always newer weights, and the last ones when the run ends."""

import signal
from contextlib import ExitStack

import pytest

from mlxhog.arena import Arena
from mlxhog.checkpoint import run as runs
from mlxhog.cli import main
from tests.another_process import Program
from tests.live.serving.servers import END_S, MLX, serving
from tests.threads import in_threads, wait_until
from tests.training.small import flags, small_config


def trainer(folder, *words):
    return Program("train", "--quiet", *words, cwd=folder, XDG_CACHE_HOME=str(folder / "cache"))


@pytest.mark.slow
def test_a_server_follows_a_run_that_ends_is_resumed_killed_and_resumed_again(tmp_path):
    """Each end leaves the last weights: those of a checkpoint, unless the run was killed."""
    config = small_config(
        tmp_path, steps=10**6, batch_size=1, live_every=1, slow="0=8"
    )  # it sleeps
    with ExitStack() as stack:
        training = trainer(tmp_path, *flags(config))
        stack.callback(training.communicate, timeout=END_S)
        stack.callback(training.kill)
        server = stack.enter_context(serving("latest", MLX, "--wait", "60", cwd=tmp_path))
        wait_until(lambda: server.health()["newest"] > 0)
        (run,) = runs.list_runs(tmp_path / "runs")
        fields = {"model": server.model, "prompt": "The ", "max_tokens": 5}
        statuses = []

        def ask(k):  # many clients at once, while it trains
            url, prompt = f"{server.url}/completions", "The " * (k + 1)
            for _ in range(5):
                statuses.append(server.http.post(url, json=fields | {"prompt": prompt}).status_code)

        in_threads(ask, range(10))
        assert statuses == [200] * 50
        saved = None
        for ending in (signal.SIGINT, signal.SIGKILL, signal.SIGINT):
            resumed = None
            if saved is not None:
                training = trainer(tmp_path, "--resume", run.name, "--steps=1000000")
                stack.callback(training.kill)
                wait_until(lambda: server.health()["training"] is True)
                wait_until(lambda: server.health()["newest"] > saved)  # noqa: B023
                resumed = server.health()
                assert resumed["weights"] == f"run {run.name}"
            training.send_signal(ending)
            training.communicate(timeout=END_S)
            wait_until(lambda: server.health()["training"] is False)
            before, newest = saved, (run.checkpoints / "latest").read_text().strip()
            saved = int(newest.rpartition("-")[2])
            weights = server.openai().completions.create(**fields).model_extra["mlxhog"]
            assert weights["age_s"] >= 0
            first, last = weights["version_first"], weights["version_last"]
            if ending == signal.SIGINT:
                assert first == last == saved
            else:
                assert resumed["newest"] <= first == last
            assert before is None or last > before


@pytest.mark.slow
def test_beside_a_stopped_trainer_the_newest_checkpoint_is_read_and_said(
    tmp_path, monkeypatch, capsys
):
    connect = Arena.connect
    monkeypatch.setattr(Arena, "connect", lambda path, patience_s: connect(path, 0.5))
    monkeypatch.chdir(tmp_path)
    config = small_config(tmp_path, steps=10**6, save_every=5, batch_size=1)
    training = trainer(tmp_path, *flags(config))
    try:
        wait_until(lambda: list(tmp_path.glob("runs/*/checkpoints/latest")))
        training.send_signal(signal.SIGSTOP)
        assert main(["generate", "latest", MLX, "--prompt=a", "--max-new-tokens=2"]) == 0
    finally:
        training.kill()
        training.communicate(timeout=END_S)
    (run,) = runs.list_runs(tmp_path / "runs")
    saved = (run.checkpoints / "latest").read_text().strip()
    note, weights, _ = capsys.readouterr().err.splitlines()
    assert note.startswith(f"the process that trains run {run.name} does not answer")
    expected = f"weights of checkpoint {saved} of run {run.name}, version {int(saved[5:])}"
    assert weights == expected
