"""Run directories: made once, held by one process, found again, readable after any death."""

import errno
import json
import os
import stat
import threading
import time

import numpy as np
import pytest

from mlxhog.base import durable, reading
from mlxhog.checkpoint import new_run
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.run import Run
from mlxhog.errors import EnvironmentLacks, RunError
from tests.forked import CONTEXT
from tests.odd_disk import held_elsewhere
from tests.pairs import each_of
from tests.threads import LIMIT_S, in_threads


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_new_runs_are_private_named_after_their_time_and_apart(tmp_path):
    barrier, results = threading.Barrier(4), []

    def create(name):
        barrier.wait(LIMIT_S)
        results.extend(new_run.create(tmp_path, name) for _ in range(3))

    in_threads(create, "xxxx")
    assert len({run.directory for run in results}) == 12
    run = min(results, key=lambda one: len(one.name))
    date, time, name = run.name.split("-")
    assert (len(date), len(time), name) == (8, 6, "x")
    assert stat.S_IMODE(run.directory.stat().st_mode) == 0o700
    assert run.checkpoints.is_dir()


def test_a_run_that_starts_is_found_with_its_options_and_held(tmp_path):
    with new_run.starting(tmp_path / "runs", "new", "lr: 0.5\n") as run:
        assert runs.find("latest", tmp_path / "runs") == run
        assert (run.is_starting(), run.is_locked()) == (True, True)
        assert run.config_path.read_text() == "lr: 0.5\n"
    assert not run.is_locked()
    assert run.read_status()["status"] == "interrupted"  # no process holds it


def test_a_start_that_fails_or_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    def fail(run):
        (run.directory / "architecture").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_run.starting(tmp_path / "runs", "new", "") as run:
        fail(run)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(runs, "replace_file", full)
    with pytest.raises(EnvironmentLacks, match="full"):
        new_run.create(tmp_path, "new", "")
    assert list(tmp_path.iterdir()) == []


def hold(directory, connection):
    with Run(directory).lock():
        connection.send(os.getpid())
        connection.recv()


def test_a_second_command_on_a_run_is_told_who_holds_it_until_that_process_dies(run):
    here, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=hold, args=(run.directory, there))
    child.start()
    run.write_status({"status": "running"})
    try:
        pid = here.recv() if here.poll(LIMIT_S) else 0
        assert pid == child.pid
        assert run.is_locked()
        assert run.read_status()["status"] == "running"
        with pytest.raises(RunError, match=rf"in use by process {pid}; wait for it"), run.lock():
            pass
    finally:
        child.kill()  # the kernel frees the lock of a process that dies by SIGKILL
        child.join(LIMIT_S)
    assert not run.is_locked()
    assert run.read_status()["status"] == "interrupted"


def test_a_run_that_another_host_trains_is_running_there_and_neither_resumed_nor_removed(run):
    run.write_status({"status": "running"})
    record = held_elsewhere(run.directory)
    status = run.read_status()
    assert (status["status"], status["host"]) == ("running", "another")
    for act in (lambda: runs.remove(run), lambda: run.lock().__enter__()):
        with pytest.raises(RunError, match="in use by process 7 on another; .* another has died"):
            act()
    os.utime(record, (1, 1))  # no sign of life for long
    assert run.read_status()["status"] == "interrupted"
    runs.remove(run)
    assert not run.directory.exists()


@each_of("content", ["", "{", "[1]", '{"commands": [{}]}', '{"text_added": [{"step": "x"}]}'])
def test_a_damaged_status_says_so(run, content):
    (run.directory / "run.json").write_text(content)
    status = run.read_status()
    assert status["status"] == "damaged"
    assert status["error"].startswith("run.json: ")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_run_with_something_else_in_place_of_its_status_is_listed_as_damaged(run, make):
    (run.directory / "run.json").unlink()
    make(run.directory / "run.json")
    (listed,) = runs.list_runs(run.directory.parent)
    assert listed.read_status()["status"] == "damaged"


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"x": "' + b"y" * 200_000])
def test_a_torn_last_line_is_ignored_and_then_replaced(run, torn):
    assert run.read_metrics() == []
    run.append_metrics({"step": 1, "loss": float("inf"), "per_worker": [np.float32(0.5)]})
    first = {"step": 1, "loss": None, "per_worker": [0.5]}
    with run.metrics_path.open("ab") as file:
        file.write(torn)
    assert run.read_metrics() == [first]
    run.append_metrics({"step": 2})
    assert run.read_metrics() == [first, {"step": 2}]


def test_metrics_may_have_any_number_of_lines_but_no_endless_one(run, monkeypatch):
    steps = [{"step": step, "elapsed_s": step / 4} for step in range(8)]
    lines = [json.dumps(step).encode() + b"\n" for step in steps]
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", max(map(len, lines)))
    run.metrics_path.write_bytes(b"".join(lines))
    run.drop_metrics_after(4, 1.0)
    assert run.read_metrics() == steps[:5]
    with run.metrics_path.open("ab") as file:
        file.write(b" " * (reading.MAX_LINE_BYTES + 1))
    with pytest.raises(RunError, match=r"damaged after 5 lines: a line has more than \d+ bytes"):
        run.read_metrics()


def test_runs_are_listed_oldest_first_and_found_as_latest_by_name_and_by_path(
    tmp_path, monkeypatch
):
    root = tmp_path / "runs"
    assert runs.list_runs(root) == []
    results = [new_run.create(root, name) for name in ("b", "a", "c")]
    (root / "not-a-run").mkdir()
    assert runs.list_runs(root) == results
    assert runs.find("latest", root) == results[-1]
    first = results[0]
    monkeypatch.chdir(tmp_path)
    for spec, folder in (
        (first.name, root),
        (str(first.directory), tmp_path / "elsewhere"),
        (f"runs/{first.name}", root),
    ):
        assert runs.find(spec, folder) == first


def test_the_latest_run_began_last_whatever_the_clock_said(tmp_path, monkeypatch):
    def begin(name, day):
        monkeypatch.setattr(time, "time_ns", lambda: day * 86_400 * 10**9)
        return new_run.create(tmp_path, name)

    begun = [begin(name, day) for name, day in (("a", 9), ("b", 7), ("c", 1), ("d", 8), ("e", 20))]
    begun[1].write_status({"status": "running"})  # as when it is resumed
    assert runs.list_runs(tmp_path) == begun
    assert runs.find("latest", tmp_path) == begun[-1]
    # Runs that come from elsewhere have their place by their time.
    for name, day in (("past", 10), ("future", 30)):
        other = new_run.create(tmp_path / name, name)
        other.write_status({"status": "done"})
        (other.directory / "run.json").write_text(json.dumps({"created_ns": day * 86_400 * 10**9}))
        os.rename(other.directory, tmp_path / other.name)
    assert [one.name.split("-")[2] for one in runs.list_runs(tmp_path)[-3:]] == [
        "past", "e", "future",
    ]  # fmt: skip
    assert runs.find("latest", tmp_path) != begin("last", 21) == runs.find("latest", tmp_path)


def test_a_part_of_a_name_that_no_other_run_has_is_enough(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    notes, letters = (new_run.create(root, name) for name in ("notes", "letters"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()  # such as the run's data: no run, so it is not meant
    assert runs.find("notes", root) == notes
    assert runs.find("ter", root) == letters
    new_run.create(root, "notes-2")
    assert runs.find("notes", root) == notes  # a name, though others have it as a part
    with pytest.raises(RunError, match="is part of the names of 2 runs") as caught:
        runs.find("otes", root)
    assert letters.name not in str(caught.value)
    assert runs.find(notes.name, root) == notes  # a whole name, though another begins with it
    with pytest.raises(RunError, match="does not exist"):
        runs.find(f"runs/{letters.name[:-2]}", root)


@each_of(
    ("named", "words"),
    [
        ("{name}ut", "did you mean '{run}'"),
        ("stou", "did you mean '{run}'"),
        ("lastest", "did you mean 'latest'"),
        ("%%%%", "has {run}"),
        ("./nothere", "./nothere does not exist; name a run, or a path that exists"),
        ("{folder}x", "does not exist; did you mean '{run}'?"),
        ("{root}", "is not a run: it has no run.json"),
    ],
)
def test_what_is_no_run_is_named_with_the_nearest(tmp_path, named, words):
    run = new_run.create(tmp_path, "sotu")
    values = {"name": run.name[:-2], "run": run.name, "folder": run.directory, "root": tmp_path}
    with pytest.raises(RunError) as caught:
        runs.find(named.format(**values), tmp_path)
    assert words.format(**values) in str(caught.value)


def remove_and_wait(directory, connection):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "remove", lambda path: connection.send(path) or connection.recv())
        runs.remove(Run(directory))


def test_a_removal_that_was_killed_leaves_no_half_run_and_the_next_one_clears_up(tmp_path):
    first, second = (new_run.create(tmp_path, name) for name in ("a", "b"))
    here, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=remove_and_wait, args=(first.directory, there))
    child.start()
    try:
        assert here.poll(LIMIT_S)  # it has lost its name, and nothing of it is deleted yet
    finally:
        child.kill()
        child.join(LIMIT_S)
    assert runs.list_runs(tmp_path) == [second]
    assert len(list(tmp_path.iterdir())) == 2
    runs.remove(second)
    assert not list(tmp_path.iterdir())
