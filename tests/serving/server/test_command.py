"""`mlxhog serve`: its errors and its end, and always newer weights of a run that trains."""

import json
import resource
import signal
import time
from contextlib import ExitStack
from functools import partial

import pytest

from mlxhog.arena import Arena
from mlxhog.base.http_server import listen
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.formats.converting import convert
from mlxhog.cli import main
from mlxhog.serving.source import POLL_S
from tests.another_process import Program
from tests.saved import saved_run
from tests.serving.server.servers import END_S, MLX, answered, connected, post, serving
from tests.threads import in_threads, wait_until
from tests.training.small import flags, small_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server_well_and_frees_its_port(folder, number):
    with serving("latest", MLX, cwd=folder) as server:
        health = server.health()
        assert (health["status"], health["model"]) == ("ok", server.model)
        assert (health["training"], health["version"], health["newest"]) == (False, 7, 7)
        code, err = server.end(number)
    assert (code, err.splitlines()[-1]) == (0, "ended")
    listen("127.0.0.1", server.port).close()


def test_more_connections_than_files_can_be_open_are_one_line_and_no_end(folder):
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (80, 80))
    fields = {"prompt": "The ", "max_tokens": 2}
    with serving("latest", MLX, cwd=folder, before=few) as server:
        with ExitStack() as stack:
            first = stack.enter_context(connected(server))
            for _ in range(100):
                stack.enter_context(connected(server))
            message = server.process.stderr.readline()
            time.sleep(4 * POLL_S)  # it looks for newer weights, and can open no file
            request = json.dumps(fields | {"model": server.model}).encode()
            first.sendall(post("/v1/completions", request, "Connection: close"))
            assert answered(first)[0] == 200
        assert "no more files can be opened, so connections wait" in message
        assert server.http.get(f"{server.url}/models").status_code == 200
        assert server.end(signal.SIGTERM) == (0, "ended\n")


def test_a_signal_ends_a_server_whose_tokenizer_backtracks_in_a_prompt(tmp_path):
    convert(formats.open(checkpoint.latest(saved_run(tmp_path, "a"))), tmp_path / "hf", "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    description = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "a*a*a*b"}, "behavior": "Isolated"}
    parts = [split | {"invert": False}, description["pre_tokenizer"]]
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    path.write_text(json.dumps(description))
    prompt = " ".join(["a" * 370] * 200) + "b"  # for minutes
    with serving(path.parent, MLX) as server, connected(server) as client:
        fields = {"model": server.model, "prompt": prompt, "max_tokens": 2}
        client.sendall(post("/v1/completions", json.dumps(fields).encode(), "Connection: close"))
        server.health()  # it has begun to read the request before
        assert server.end() == (0, "ended\n")
        status, answer = answered(client)
        assert (status, b"use another tokenizer" in answer) == (400, True)


def trainer(folder, *words):
    return Program("train", "--quiet", *words, cwd=folder, XDG_CACHE_HOME=str(folder / "cache"))


def test_a_server_follows_a_run_that_ends_is_resumed_killed_and_resumed_again(tmp_path):
    """Each end leaves the last weights: those of a checkpoint, unless the run was killed."""
    config = small_config(
        tmp_path, steps=10**6, batch_size=1, live_every=1, inject_stragglers="0=8"
    )
    with ExitStack() as stack:
        training = trainer(tmp_path, *flags(config))
        stack.callback(training.communicate, timeout=END_S)
        stack.callback(training.kill)
        server = stack.enter_context(serving("latest", MLX, "--wait", "120", cwd=tmp_path))
        wait_until(lambda: server.health()["newest"] > 0)
        (run,) = runs.list_runs(tmp_path / "runs")
        fields = {"model": server.model, "prompt": "The ", "max_tokens": 5}
        statuses = []

        def ask(k):  # many clients at once, while it trains
            url, prompt = f"{server.url}/completions", "The " * (k + 1)
            for _ in range(5):
                statuses.append(server.http.post(url, json=fields | {"prompt": prompt}).status_code)

        in_threads(ask, range(10), limit_s=200)
        assert statuses == [200] * 50

        def reads(version, *, whole):  # a server puts off loads that would take much of its time
            weights = server.openai().completions.create(**fields).model_extra["mlxhog"]
            assert weights["age_s"] >= 0
            first, last = weights["version_first"], weights["version_last"]
            return first == last == version if whole else last >= version

        saved = None
        for ending in (signal.SIGINT, signal.SIGKILL, signal.SIGINT):
            before = saved
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
            newest = (run.checkpoints / "latest").read_text().strip()
            saved = int(newest.rpartition("-")[2])
            assert before is None or (saved > before) == (ending == signal.SIGINT)
            if ending == signal.SIGINT:
                wait_until(partial(reads, saved, whole=True))
            else:  # of a killed run an update may be in them in part
                wait_until(partial(reads, resumed["newest"], whole=False))


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
    note, _, weights, _ = capsys.readouterr().err.splitlines()
    assert note.startswith(f"the process that trains run {run.name} does not answer")
    expected = f"weights of checkpoint {saved} of run {run.name}, step {int(saved[5:])}"
    assert weights == expected
