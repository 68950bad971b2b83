"""Files that cannot be written: said in words, nothing lost, and training goes on."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlxhog import cli, train
from mlxhog.arena import event_log, requests
from mlxhog.base import durable
from mlxhog.checkpoint import creation
from mlxhog.checkpoint import run as runs
from mlxhog.data.stream import StreamWriter, append_examples
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import ArenaError, EnvironmentLacks
from mlxhog.mad.study.store import Store
from mlxhog.training import reporting
from mlxhog.training import run as training
from tests.checkpoint.conftest import names, save
from tests.pairs import each_of
from tests.training.small import small_config
from tests.training.test_bad_days import flags

BYTES = ByteTokenizer()
REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOENT, errno.EACCES),
    *(errno.EPERM, errno.ENOTDIR, errno.EFBIG, errno.ELOOP),
)


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
        "study": (
            tmp_path / "candidates.jsonl",
            store.add_proposal,
        ),
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
        pytest.raises(EnvironmentLacks, match="may have 2,"),
    ):
        append("y" * 6000)  # fits into a buffer
    assert path.read_bytes() == before


def test_a_link_planted_under_a_part_name_is_not_followed(tmp_path):
    victim, target = tmp_path / "victim", tmp_path / "run.json"
    victim.write_text("mine")
    target.with_name(f"run.json.{os.getpid()}.part").symlink_to(victim)
    durable.replace_file(target, b"new")
    assert (victim.read_text(), target.read_bytes()) == ("mine", b"new")
    assert not target.is_symlink()


def test_the_oldest_saved_checkpoint_goes_and_a_link_without_what_it_points_to(run, tmp_path):
    """Not by the time of their files, which a copy or a wrong clock changes."""
    elsewhere = tmp_path / "elsewhere"
    os.rename(save(run, 30), elsewhere)
    (run.checkpoints / "step-00000030").symlink_to(elsewhere)
    save(run, 10)
    os.utime(run.checkpoints / "step-00000010" / "state.json", (0, 0))
    save(run, 20, keep_last=2)
    assert names(run) == ["latest", "step-00000010", "step-00000020"]
    assert (elsewhere / "state.json").exists()


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


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "mad data"])
def test_a_limit_on_the_size_of_files_is_named(tmp_path, command):
    words = {
        "train": flags(small_config(tmp_path)),
        "mad data": ["--task=M", "--train-rows=30000", f"--out={tmp_path / 'rows.npz'}"],
    }
    process = subprocess.run(
        [sys.executable, "-m", "mlxhog", *command.split(), *words[command]],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 3, process.stderr
    assert "200,000" in process.stderr
    assert "ulimit -f" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("squat", [Path.touch, lambda path: path.symlink_to("/")])
def test_something_in_the_place_of_the_directory_of_sockets_is_refused(
    tmp_path, monkeypatch, squat
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    squat(tmp_path / f"mlxhog-{os.getuid()}")
    with pytest.raises(ArenaError, match="is not a directory of this user"):
        requests.socket_path(tmp_path / ("long" * 40))


READERS = (("show", "{run}"), ("runs", "--out", "{root}"), ("plot", "{run}"), ("report", "{run}"))
RESUME = ("train", "--resume", "{run}", "--steps", "1", "--quiet")
GENERATE = ("generate", "{run}", "--backend", "torch", "--max-new-tokens", "1")
MORE_READERS = {
    "config.yaml": (RESUME,),
    "checkpoints/latest": (RESUME, GENERATE),
    "replay/config.yaml": (("replay", "{run}"),),
    "replay/header.json": (("replay", "{run}"),),
    "replay/worker-1.log": (("replay", "{run}"),),
    "checkpoints/step-00000002/state.json": (GENERATE,),
    "checkpoints/step-00000002/model.safetensors": (GENERATE,),
}


@pytest.mark.slow
def test_a_pipe_in_place_of_any_file_of_a_run_never_holds_up_a_command(tmp_path):
    config = small_config(tmp_path, workers="mlx:cpu", determinism="record", steps=2)
    run = Path(train(config, observer=None).run)

    class Waits(BaseException):  # an OSError would be answered in words
        pass

    def late(number, frame):
        raise Waits

    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names >= MORE_READERS.keys()
    before = signal.signal(signal.SIGALRM, late)
    try:
        for number, name in enumerate(sorted(names)):
            copy = Path(shutil.copytree(run, tmp_path / str(number) / "runs" / run.name))
            (copy / name).unlink()
            os.mkfifo(copy / name)
            for words in (*READERS, *MORE_READERS.get(name, ())):
                signal.alarm(60)
                code = cli.main([word.format(run=copy, root=copy.parent) for word in words])
                signal.alarm(0)
                assert code in (0, 1, 2, 3), (words, name)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
