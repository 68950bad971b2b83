"""Files that cannot be written: said in words, nothing lost, and training goes on."""

import contextlib
import errno
import os
import resource

import pytest

from mlxhog.arena import event_log
from mlxhog.checkpoint import creation
from mlxhog.checkpoint import run as runs
from mlxhog.data.stream import StreamWriter, append_examples
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import EnvironmentLacks
from mlxhog.mad.study.store import Store
from mlxhog.training import reporting
from mlxhog.training import run as training
from tests.checkpoint.conftest import names, save
from tests.pairs import each_of
from tests.training.small import small_config

BYTES = ByteTokenizer()
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ENOENT, errno.EACCES, errno.EFBIG)


@pytest.fixture
def run(tmp_path):
    return creation.create(tmp_path / "runs", "small")


def refuse(monkeypatch, number):
    """Let the system refuse to flush anything to the disk."""

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize("number", REFUSALS)
def test_a_refused_write_is_said_in_words_and_the_old_file_stands(run, monkeypatch, number):
    save(run, 10)
    study = Store(run.directory)
    study.add_proposal("swiglu")
    with monkeypatch.context() as patch:
        refuse(patch, number)
        for write in (
            lambda: run.write_status({"status": "done"}),
            lambda: save(run, 20),
            lambda: study.add_proposal("mlp"),
        ):
            with pytest.raises(EnvironmentLacks):
                write()
    assert [one.candidate for one in study.proposals()] == ["swiglu"]
    assert run.read_status()["status"] == "interrupted"
    assert names(run) == ["latest", "step-00000010"]


@contextlib.contextmanager
def file_size_limit(n_bytes):
    """Let the system refuse to make a file longer, as a full disk does: amid a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@each_of("name", ["metrics", "events", "samples", "study", "examples", "log"])
def test_a_log_keeps_nothing_of_what_the_disk_refused_in_part(tmp_path, name):
    run, store, log = runs.Run(tmp_path), Store(tmp_path), tmp_path / "worker-0.log"
    StreamWriter(tmp_path, ByteTokenizer(), seq_len=9000, batch_size=1).accept_examples()
    appends = {
        "metrics": (run.metrics_path, lambda text: run.append_metrics({"text": text})),
        "events": (run.events_path, lambda text: run.append_event({"text": text})),
        "samples": (run.samples_path, run.append_sample),
        "study": (tmp_path / "candidates.jsonl", store.add_proposal),
        "examples": (
            tmp_path / "stream" / "examples.jsonl",
            lambda text: append_examples(
                tmp_path, [{"prompt": "", "answer": "y" * 50}] * (len(text) // 50), BYTES
            ),
        ),
        "log": (log, lambda text: event_log.append(log, event_log.Begin(text, 1, ""))),
    }
    path, append = appends[name]
    append("x" * 100)
    before = path.read_bytes()
    with (
        file_size_limit(len(before) + 2048),
        pytest.raises(EnvironmentLacks, match="ulimit -f"),
    ):
        append("y" * 6000)  # fits into a buffer
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_run_whose_folder_is_moved_trains_on_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "METRICS_S", 0.0)
    monkeypatch.setattr(reporting, "REPORT_S", 0.0)
    messages = []

    def move(progress):
        messages.append(progress.message or "")
        for outcome in runs.list_runs(tmp_path / "runs"):
            if progress.step > 0:
                os.rename(outcome.directory, tmp_path / "moved")

    result = training.train(
        small_config(tmp_path, steps=200, save_every=50, eval_every="1h"), observer=move
    )
    assert (result.status, result.steps, result.checkpoint) == ("unsaved", 200, None)
    assert result.val_bits_per_byte is not None
    assert "was it moved or deleted?" in str(result.error)
    assert sum("no metrics: " in message for message in messages) == 1
    assert any("no checkpoint: " in message for message in messages)
