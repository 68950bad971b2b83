"""Files and streams that cannot be written: said in words, nothing lost, and work continues."""

import contextlib
import errno
import io
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.arena import event_log
from mlxhog.base.output import LastingStream, OutputLost
from mlxhog.checkpoint import checkpoint, new_run
from mlxhog.checkpoint import run as runs
from mlxhog.cli import main
from mlxhog.data.stream import StreamWriter, append_examples
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import EnvironmentLacks
from mlxhog.mad.study.store import Store
from mlxhog.training.supervisor import reporting, training
from mlxhog.training.supervisor.training import train
from tests.pairs import each_of
from tests.saved import names, save
from tests.training.small import flags, lasts_until, small_config

BYTES = ByteTokenizer()
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ENOENT, errno.EACCES, errno.EFBIG)


@pytest.fixture
def run(tmp_path):
    return new_run.create(tmp_path / "runs", "small")


@pytest.mark.parametrize("number", REFUSALS)
def test_a_refused_write_is_said_in_words_and_the_old_file_stands(run, monkeypatch, number):
    save(run, step=10)
    study = Store(run.directory)
    study.add_proposal("swiglu")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)  # nothing reaches the disk
        for write in (
            lambda: run.write_status({"status": "done"}),
            lambda: save(run, step=20),
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
    with file_size_limit(len(before) + 2048), pytest.raises(EnvironmentLacks, match="ulimit -f"):
        append("y" * 6000)  # fits into a buffer
    assert path.read_bytes() == before


@pytest.mark.slow
@each_of("change", ["renamed", "removed", "removed for good"])
def test_a_run_continues_in_its_renamed_folder_or_in_a_new_one_and_says_so_once(
    tmp_path, monkeypatch, change
):
    monkeypatch.setattr(reporting, "REPORT_S", 0.0)
    root, renamed = tmp_path / "runs", tmp_path / "renamed"
    messages, folders, created_ns = [], [], []
    lasts_until(monkeypatch, lambda: bool(folders))

    def act(progress):
        messages.append(progress.message or "")
        if folders or not progress.step:  # it trains, and has saved nothing
            return
        folders.extend(one.directory for one in runs.list_runs(root))
        created_ns.append(runs.Run(*folders).created_ns())
        if change == "renamed":
            os.rename(*folders, renamed)
            return
        shutil.rmtree(root)
        if change == "removed for good":
            root.touch()

    config = small_config(tmp_path, steps=40, sample_every="1h")  # a sample at the end
    result = training.train(config, observer=act)
    assert sum("the run's folder" in message for message in messages) == 1
    if change == "removed for good":
        assert (result.status, result.checkpoint) == ("unsaved", None)
        assert "a file has the name of its folder" in str(result.error)
        return
    (folder,) = [renamed] if change == "renamed" else folders
    assert (result.status, result.run) == ("done", str(folder))
    assert runs.Run(folder).read_status()["checkpoint"] == result.checkpoint
    assert runs.Run(folder).read_metrics()
    assert runs.Run(folder).last_sample()
    assert [runs.Run(folder).created_ns()] == created_ns
    assert train(small_config(tmp_path, resume=str(folder), steps=1)).steps == 41


@contextlib.contextmanager
def broken_pipe():
    """The end of a pipe that is written to, after the other end was closed."""
    read, write = os.pipe()
    os.close(read)
    stream = open(write, "w")  # noqa: SIM115  closed below, where it may fail
    try:
        yield stream
    finally:
        with contextlib.suppress(BrokenPipeError):
            stream.close()


class Refusing(io.StringIO):
    """A stream that takes some text, then none."""

    def __init__(self, accepted, number):
        super().__init__()
        self.left, self.number = accepted, number

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, "refused")
        return super().write(text)


@each_of("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_stream_that_refuses_text_falls_silent_or_ends_a_command_that_only_tells(number):
    behind = Refusing(1, number)
    stream = LastingStream(behind)
    for text in ("one", "two", "three"):
        assert stream.write(text) == len(text)
    stream.flush()
    assert (behind.getvalue(), stream.failure.errno) == ("one", number)
    stream = LastingStream(Refusing(0, number), ends=True)
    with pytest.raises(OutputLost):
        stream.write("one")


def test_a_broken_observer_ends_no_training_even_where_warnings_are_errors(tmp_path):
    def observe(progress):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    result = train(small_config(tmp_path, steps=3), observer=observe)
    assert result.status == "done"
    events = (Path(result.run) / "events.jsonl").read_text()
    assert events.count("progress cannot be shown any more") == 1


def test_an_observer_whose_pipe_is_closed_does_not_end_the_training(tmp_path):
    calls = []

    def observe(progress):
        calls.append(progress)
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.warns(UserWarning, match="progress cannot be shown any more"):
        result = train(small_config(tmp_path, steps=3), observer=observe)
    assert (result.status, len(calls)) == ("done", 1)
    assert result.checkpoint is not None


def test_training_whose_result_nobody_reads_is_saved_without_a_word_of_it(
    tmp_path, monkeypatch, capsys
):
    config = small_config(tmp_path, steps=3)
    with broken_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["train", "--json", *flags(config)]) == 3
    assert "cannot be written" not in capsys.readouterr().err
    (listed,) = runs.list_runs(tmp_path / "runs")
    assert listed.read_status()["status"] == "done"
    assert checkpoint.load(checkpoint.latest(listed)).step == 3


@pytest.mark.slow
def test_a_reader_that_leaves_changes_no_exit_code_of_a_command_that_only_tells(
    tmp_path, monkeypatch, capsys
):
    folder = train(small_config(tmp_path, steps=2)).run
    (tmp_path / "mine.txt").write_text("A few words that nobody reads. " * 40)
    for words, code in (
        (["generate", folder, "--max-new-tokens", "1000000"], 0),
        (["runs", "--runs-dir", str(Path(folder).parent)], 0),
        (["mad", "tasks"], 0), (["mad", "suites"], 0), (["mad", "layers", "--json"], 0),
        (["eval", folder, "--data", str(tmp_path / "mine.txt")], 0),
        (["parity", "tiny", "--perturb", "lm_head.weight", "--backends", "numpy,torch:cpu"], 1),
    ):  # fmt: skip
        with broken_pipe() as pipe, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", pipe)
            capsys.readouterr()
            assert main(words) == code, words
        assert "cannot be written" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_with_closed_standard_streams_trains(tmp_path):
    """Files that it opens would else get the numbers of these streams, and workers write there."""
    config = small_config(tmp_path, steps=3)
    command = [sys.executable, "-m", "mlxhog", "train", *flags(config)]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, timeout=240, check=False).returncode == 0
    (listed,) = runs.list_runs(tmp_path / "runs")
    assert listed.read_status()["status"] == "done"
