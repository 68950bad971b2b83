"""A server of a run that trains: always newer weights, and the last ones when the run ends."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mlxhog.checkpoint import run as runs
from tests.live.serving.servers import END_S, Server, serving, start

pytestmark = pytest.mark.slow

FAST = ("--live-every=1", "--workers=torch:cpu", "--batch-size=1", "--seq-len=32")


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that trains in a folder of its own until the test ends it."""
    process = start("train", "--time", "1h", "--quiet", *FAST, cwd=tmp_path)
    yield process
    if process.poll() is None:
        process.terminate()
    process.communicate(timeout=END_S)


@pytest.fixture
def server(training: subprocess.Popen[str], tmp_path: Path) -> Iterator[Server]:
    """A server that was started at the same time as the run."""
    with serving("latest", "--wait", "60", cwd=tmp_path) as server:
        yield server


def until(holds: Callable[[], Any]) -> None:
    for _ in range(1200):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it did not come true")


def version(server: Server, **how: Any) -> tuple[int, int]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        fields: Any = {"model": server.model, "prompt": "The ", "max_tokens": 5} | how
        weights = client.completions.create(**fields).model_extra["mlxhog"]
    assert weights["age_s"] >= 0
    return weights["version_first"], weights["version_last"]


def test_two_completions_come_from_two_versions(server: Server) -> None:
    assert server.health()["training"] is True
    _, first = version(server)
    until(lambda: server.health()["newest"] > first)
    second, _ = version(server)
    assert second > first
    assert server.metric("mlxhog_weights_loads") > 0


def test_a_stream_sees_newer_weights_between_its_tokens(
    server: Server,
) -> None:
    fields: Any = {"model": server.model, "prompt": "The ", "max_tokens": 4000, "stream": True}
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:

        def stream() -> tuple[list[str], dict[str, Any]]:
            chunks = list(client.completions.create(**fields))
            return [str(c.system_fingerprint) for c in chunks], chunks[-1].model_extra["mlxhog"]

        def has_two() -> bool:
            fingerprints, weights = stream()
            assert fingerprints[-1] == f"v{weights['version_last']}"
            return bool(weights["version_last"] > weights["version_first"])

        until(has_two)


def test_when_the_run_ends_its_last_weights_stay(
    training: subprocess.Popen[str], server: Server, tmp_path: Path
) -> None:
    until(lambda: server.health()["newest"] > 0)
    training.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=END_S)
    assert training.returncode == 130, err
    until(lambda: server.health()["training"] is False)
    (run,) = runs.list_runs(tmp_path / "runs")
    saved = int((run.checkpoints / "latest").read_text().strip().rpartition("-")[2])
    assert version(server) == (saved, saved)


def test_a_killed_run_leaves_weights_and_a_server_that_answers(
    training: subprocess.Popen[str], server: Server
) -> None:
    _, before = version(server)
    training.kill()
    until(lambda: server.health()["training"] is False)
    first, last = version(server)
    assert before <= first == last


def test_a_killed_server_does_not_hold_the_run_up(
    training: subprocess.Popen[str], server: Server, tmp_path: Path
) -> None:
    version(server)
    server.process.kill()
    server.process.communicate(timeout=END_S)
    with serving("latest", cwd=tmp_path) as another:
        _, first = version(another)
        until(lambda: another.health()["newest"] > first)
    assert training.poll() is None


def test_a_hundred_requests_of_many_clients_while_it_trains_all_succeed(server: Server) -> None:
    failed: list[str] = []
    seen: set[int] = set()

    def ask(k: int) -> None:
        for _ in range(10):
            fields = {"model": server.model, "prompt": "The " * (k + 1), "max_tokens": 20}
            answer = httpx.post(f"{server.url}/completions", json=fields, timeout=120)
            if answer.status_code == 200:
                seen.add(answer.json()["mlxhog"]["version_last"])
            else:
                failed.append(answer.text)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert seen
