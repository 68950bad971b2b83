"""Readers of runs that really train: what they get is what checkpoints of the same version hold."""

import contextlib
import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from mlxhog import load, train
from mlxhog.arena import Arena, plan, requests
from mlxhog.arena.requests import socket_path
from mlxhog.checkpoint import creation
from mlxhog.checkpoint import run as runs
from mlxhog.cli import main
from mlxhog.errors import ArenaError, RunError
from mlxhog.live import source as sources
from mlxhog.live.opening import open_source
from mlxhog.live.source import WeightFollower
from mlxhog.models.families import param_spec
from mlxhog.training import reporting
from tests.saved import SMALL, save, saved_run
from tests.training.small import small_config


class Observer:
    """Writes with the newest weights whenever the run reports; ends it once a checkpoint has them.

    The first weights have none.
    """

    def __init__(self, out):
        self.out, self.texts = Path(out), dict[int, str]()
        self.model = None
        self._ended = False

    def __call__(self, progress):
        if progress.step < 1:
            return
        self.model = self.model or load("latest", out=self.out, backend="torch:cpu")
        follower = self.model.follower
        loaded = follower.refresh(in_sequence=False)
        text = written(self.model)
        if loaded.consistent and follower.loaded().version == loaded.version:
            self.texts[loaded.version] = text
            if not self._ended and any(self.out.glob(f"*/checkpoints/step-{loaded.version:08d}")):
                self._ended = True
                signal.raise_signal(signal.SIGINT)


def written(model):
    return model.generate("lock", temperature=0, max_new_tokens=12)


@pytest.mark.slow
def test_a_reader_writes_what_the_checkpoint_of_its_version_writes(tmp_path, monkeypatch):
    """Only copies at rest, of which each has a checkpoint, and the first are published here."""
    monkeypatch.setattr(reporting, "REPORT_S", 0.1)
    config = small_config(
        tmp_path, steps=None, time=600.0, save_every=25, keep_last=10**6, live_every=10**9, lr=1e-2
    )
    observer = Observer(config.out)
    result = train(config, observer=observer)
    assert observer.model is not None
    follower = observer.model.follower
    assert follower.source.ended()
    follower.refresh(in_sequence=False)
    last = follower.loaded()
    saved = {path.name: path for path in (Path(result.run) / "checkpoints").glob("step-*")}
    assert f"step-{last.version:08d}" == Path(str(result.checkpoint)).name
    assert last.consistent
    compared = 0
    for version, text in observer.texts.items():
        path = saved.get(f"step-{version:08d}")
        if path is not None:
            assert written(load(path, backend="torch:cpu")) == text
            compared += 1
    assert compared >= 1
    observer.model.close()


def test_generate_says_which_weights_of_a_run_it_wrote_with(tmp_path, capsys):
    config = small_config(tmp_path, steps=None, time=120.0)
    answers = []

    def generate(progress):
        if progress.step < 1 or answers:
            return
        words = ["generate", "latest", "--out", config.out, "--prompt=lock", "--max-new-tokens=5"]
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        line = json.loads(capsys.readouterr().out)
        assert main([*words, "--mode=racy"]) == 0
        answers.append((line, capsys.readouterr().err))
        signal.raise_signal(signal.SIGINT)

    train(config, observer=generate)
    ((line, text),) = answers
    weights = line["weights"]
    assert 0 <= weights["version_first"] <= weights["version_last"]
    assert weights["of"].startswith("run ")
    assert {"mode", "age_updates", "age_s", "consistent"} <= weights.keys()
    assert "weights of run " in text
    assert "updates and" in text
    assert main(["generate", "latest", "--out", config.out, "--max-new-tokens=2", "--json"]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert weights["of"].startswith("checkpoint step-")
    assert weights["version_first"] == weights["version_last"] > 0


@contextlib.contextmanager
def held_run(folder):
    """A run that a supervisor holds."""
    run = creation.create(folder, "held")
    with run.lock():
        run.write_status({"status": runs.RUNNING})
        yield run


def test_a_run_of_another_version_is_refused(tmp_path, monkeypatch):
    from tests.live.patterns import layout

    with held_run(tmp_path) as run, contextlib.ExitStack() as stack:
        arena = stack.enter_context(Arena.create(layout()))
        stack.enter_context(arena.serve(socket_path(run.directory)))
        answers = iter(["99"])  # the first call is the server's
        monkeypatch.setattr(requests, "version", lambda name: next(answers, "100"))
        with pytest.raises(ArenaError, match="another version of mlxhog"):
            open_source(run.name, root=tmp_path, backend="torch:cpu")


@pytest.mark.parametrize("why", ["another version", "no copies"])
def test_a_resumed_run_that_cannot_be_read_is_followed_by_its_checkpoints(
    why, tmp_path, monkeypatch
):
    run = saved_run(tmp_path)
    source, model = open_source(run.name, root=tmp_path, backend="torch:cpu")
    follower = WeightFollower(source, model.backend)
    connect = Arena.connect

    def connected(path, patience_s):
        if why == "another version":
            raise ArenaError("it is not the socket of a run of this version of mlxhog")
        return connect(path, patience_s)

    monkeypatch.setattr(Arena, "connect", connected)
    monkeypatch.setattr(sources, "LOOK_S", 0.0)
    monkeypatch.setattr(sources, "LOADING_PART", 1e9)
    with run.lock(), contextlib.ExitStack() as stack:
        arena = stack.enter_context(Arena.create(plan(param_spec(SMALL), n_tickets=1)))
        stack.enter_context(arena.serve(socket_path(run.directory)))
        for step in (5, 10):
            save(run, step=step)
            assert follower.refresh(in_sequence=False).version == step
    follower.source.close()
    model.backend.close()


# -- a run that starts -----------------------------------------------------------------------------


def copied(run, name):
    """Another run with the same checkpoint, which is the latest."""
    later = runs.Run(run.directory.with_name(name))
    shutil.copytree(run.directory, later.directory, symlinks=True)
    status = json.loads((later.directory / "run.json").read_text())
    status["created_ns"] = time.time_ns()
    (later.directory / "run.json").write_text(json.dumps(status))
    return later


def test_a_run_that_starts_is_waited_for_and_is_never_answered_for_by_the_one_before(tmp_path):
    before = saved_run(tmp_path, "before")
    said = []
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(creation.starting(tmp_path, "new", ""))

        def pause(seconds):
            copied(before, "copy").directory.rename(tmp_path / "moved")  # the new one has begun
            shutil.rmtree(new.directory)
            (tmp_path / "moved").rename(new.directory)

        source, model = open_source(
            "latest", root=tmp_path, backend="torch:cpu", wait_s=60, say=said.append, pause=pause
        )
        source.close()
        model.backend.close()
    assert source.whose.endswith(f"of run {new.name}")
    assert said == [f"run {new.name} is starting: no weights yet; waiting up to 60 s (--wait)"]


def test_a_run_whose_start_fails_while_it_is_waited_for_is_an_error(tmp_path):
    saved_run(tmp_path, "before")
    failing = creation.starting(tmp_path, "new", "")
    new = failing.__enter__()

    def pause(seconds):
        failing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    with pytest.raises(RunError, match=f"run {new.name} ended before it had weights"):
        open_source("latest", root=tmp_path, backend="torch:cpu", wait_s=60, pause=pause)
