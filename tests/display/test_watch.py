"""`mlxhog watch`: what another terminal's run does, from outside, without disturbing it."""

import json
import shlex
import signal
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxhog.checkpoint import new_run
from mlxhog.cli.watch import follow
from mlxhog.display.record import RunRecord
from tests.another_process import Program
from tests.cli.command import said
from tests.display.sample_run import EVENTS, append, event, lines, write_run


def test_a_run_that_was_killed_says_so_whatever_its_metrics_hold(tmp_path, capsys):
    run = write_run(tmp_path, metrics=lines(20), status={"status": "running"})
    out = said(capsys, "watch", run.directory).out
    assert "interrupted: 400 steps" in out
    assert "it was killed" in out
    for text in ('{"step": "many", "workers": 3}', '{"step": 3, "workers": ["x", {"pid": "x"}]}'):
        run.metrics_path.write_text(text + "\n")
        assert "interrupted: " in said(capsys, "watch", run.directory).out


def test_new_lines_events_and_the_end_are_followed(tmp_path):
    run = write_run(tmp_path, metrics=lines(3), events=EVENTS[:1])
    reports, looks, lock = [], [], ExitStack()

    def live(seconds):
        """Between two looks the run continues, then it ends."""
        looks.append(seconds)
        if len(looks) == 2:
            lock.close()
            return
        append(run, list(lines(5))[3:])
        for added in (event("sample", "new text"), event("message", "said later")):
            run.append_event(added)

    lock.enter_context(run.lock())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxhog.cli.watch.time", SimpleNamespace(sleep=live))
        follow(RunRecord(run), reports.append)
    messages = [progress.message for progress in reports if progress.message]
    assert messages[0].startswith("worker 2 (torch:cpu) died")
    assert messages[1:] == ["said later"]
    assert (reports[-1].step, reports[-1].sample, len(looks)) == (100, "new text", 2)


@pytest.mark.slow
def test_a_run_is_watched_and_not_disturbed_and_pipes_end_with_it(going_on):
    def watch(*words):
        return Program("watch", str(going_on.run.directory), *words)

    with watch() as leaving:
        leaving.stdout.readline()
        leaving.send_signal(signal.SIGINT)
        _, err = leaving.communicate(timeout=120)
    assert (leaving.returncode, going_on.process.poll()) == (130, None)
    assert "the run continues" in err
    assert "Traceback" not in err
    with watch() as plain, watch("--json") as states:
        plain.stdout.readline()
        seen = [json.loads(states.stdout.readline())]
        while len({state["step"] for state in seen}) < 7:
            seen.append(json.loads(states.stdout.readline()))
        going_on.process.send_signal(signal.SIGINT)
        going_on.process.wait(120)
        out, err = plain.communicate(timeout=120)
        rest, _ = states.communicate(timeout=120)
    seen += map(json.loads, rest.splitlines())
    assert [state["step"] for state in seen] == sorted(state["step"] for state in seen)
    assert {worker["backend"] for worker in seen[-1]["workers"]} == {"mlx:cpu"}
    result = going_on.run.read_status()["result"]
    assert (result["restarts"], result["torn"]) == (0, 0)
    assert (plain.returncode, states.returncode) == (0, 0), err
    assert "\x1b" not in out
    assert "interrupted: " in out
    assert f"mlxhog train --resume {shlex.quote(str(going_on.run.directory))}" in out


def test_a_start_is_waited_for_and_one_that_fails_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    failing = new_run.starting(Path("runs"), "new", "")
    run = failing.__enter__()
    monkeypatch.setattr(
        "mlxhog.cli.watch.time",
        SimpleNamespace(sleep=lambda _: failing.__exit__(OSError, OSError("no data"), None)),
    )
    _, err = said(capsys, "watch", "latest", code=2)
    assert err == f"{run.name} is starting\n{run.name} could not start; its terminal says why\n"
