"""Readers of runs that really train: what they get is what checkpoints of the same version hold."""

import contextlib
import itertools
import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from mlxhog import load, train
from mlxhog.arena import Arena, plan, requests
from mlxhog.arena.requests import socket_path
from mlxhog.checkpoint import new_run
from mlxhog.checkpoint.checkpoint import write_model
from mlxhog.checkpoint.run import RUNNING
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import ArenaError, RunError
from mlxhog.models.families import param_spec
from mlxhog.serving import source as sources
from mlxhog.training.supervisor import reporting
from tests.cli.command import said, told
from tests.saved import SMALL, save, saved_run
from tests.training.small import small_config


def written(model):
    return model.generate("lock", temperature=0, max_new_tokens=12)


@pytest.mark.slow
def test_a_reader_writes_what_the_checkpoint_of_its_version_writes_and_generate_says_with_which(
    tmp_path, monkeypatch, capsys
):
    """Only copies at rest, of which each has a checkpoint, and the first are published here."""
    monkeypatch.setattr(reporting, "REPORT_S", 0.1)
    config = small_config(
        tmp_path, steps=None, time=600.0, save_every=25, keep_last=10**6, live_every=10**9, lr=1e-2
    )
    models, texts, ended, answers = [], dict[int, str](), [], []
    words = [
        "generate",
        "latest",
        "--runs-dir",
        config.runs_dir,
        "--prompt=lock",
        "--max-new-tokens=5",
    ]

    def observe(progress):
        """Write with the newest weights; end the run once a checkpoint has them."""
        if progress.step < 1:
            return
        answers[:] = answers or [said(capsys, *words, f"--{how}") for how in ("json", "mode=racy")]
        models[:] = models or [load("latest", runs_dir=config.runs_dir, backend="torch:cpu")]
        follower = models[0].follower
        loaded = follower.refresh(in_sequence=False)
        text = written(models[0])
        if loaded.consistent and follower.loaded().version == loaded.version:
            texts[loaded.version] = text
            saved = Path(config.runs_dir).glob(f"*/checkpoints/step-{loaded.version:08d}")
            if not ended and any(saved):  # the first weights have none
                ended.append(True)
                signal.raise_signal(signal.SIGINT)

    result = train(config, observer=observe)
    live, saved = json.loads(answers[0].out)["weights"], told(capsys, *words)["weights"]
    assert 0 <= live["version_first"] <= live["version_last"]
    assert live["of"].startswith("run ")
    assert {"mode", "age_updates", "age_s", "consistent"} <= live.keys()
    assert all(text in answers[1].err for text in ("weights of run ", "updates and"))
    assert saved["of"].startswith("checkpoint step-")
    assert saved["version_first"] == saved["version_last"] > 0
    (model,) = models
    assert model.follower.source.ended()
    model.follower.refresh(in_sequence=False)
    last = model.follower.loaded()
    assert f"step-{last.version:08d}" == Path(str(result.checkpoint)).name
    assert last.consistent
    saved = {int(path.name[5:]): path for path in (Path(result.run) / "checkpoints").glob("step-*")}
    assert saved.keys() & texts
    for version in saved.keys() & texts:
        assert written(load(saved[version], backend="torch:cpu")) == texts[version]
    model.close()


@pytest.mark.parametrize("why", ["another version", "no copies"])
def test_a_resumed_run_that_cannot_be_read_is_followed_by_its_checkpoints(
    why, tmp_path, monkeypatch
):
    run = saved_run(tmp_path)
    write_model(run.architecture, SMALL, ByteTokenizer())
    model = load(run.name, runs_dir=tmp_path, backend="torch:cpu")
    monkeypatch.setattr(sources, "POLL_S", 0.0)
    monkeypatch.setattr(sources, "LOADING_SHARE", 1e9)
    bare = plan(param_spec(SMALL), n_tickets=1)
    with run.lock(), Arena.create(bare) as arena, arena.serve(socket_path(run.directory)):
        if why == "another version":
            run.write_status({"status": RUNNING})
            answers = itertools.cycle(["99", "100"])  # of the server, of the client
            monkeypatch.setattr(requests, "version", lambda name: next(answers))
            with pytest.raises(ArenaError, match="another version of mlxhog"):
                load(run.name, runs_dir=tmp_path, backend="torch:cpu")
        for step in (5, 10):
            save(run, step=step)
            assert model.follower.refresh(in_sequence=False).version == step
            note = model.follower.source.note
            assert ("publishes no snapshots" in note) == (why == "no copies")
    model.close()


def test_a_run_that_starts_is_waited_for_and_is_never_answered_for_by_the_one_before(tmp_path):
    before = saved_run(tmp_path, "before")
    said = []
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(new_run.starting(tmp_path, "new", ""))

        def pause(seconds):
            """The new one begins: it has the checkpoint of the other one, and is the latest."""
            shutil.copytree(before.directory, tmp_path / "moved", symlinks=True)
            status = json.loads((tmp_path / "moved" / "run.json").read_text())
            status["created_ns"] = time.time_ns()
            (tmp_path / "moved" / "run.json").write_text(json.dumps(status))
            shutil.rmtree(new.directory)
            (tmp_path / "moved").rename(new.directory)

        with load(
            "latest", runs_dir=tmp_path, backend="torch", say=said.append, pause=pause
        ) as model:
            assert model.source_name.endswith(f"of run {new.name}")
    assert said == [f"run {new.name} is starting: no weights yet; waiting up to 60 s (--wait)"]


def test_a_run_whose_start_fails_while_it_is_waited_for_is_an_error(tmp_path):
    saved_run(tmp_path, "before")
    failing = new_run.starting(tmp_path, "new", "")
    new = failing.__enter__()

    def pause(seconds):
        failing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    with pytest.raises(RunError, match=f"run {new.name} ended before it had weights"):
        load("latest", runs_dir=tmp_path, backend="torch", pause=pause)
