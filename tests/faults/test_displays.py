"""Output that cannot be written: work goes on, what only tells ends, and the exit code says so."""

import contextlib
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.arena.worker_pool import Death, WorkerProcess
from mlxhog.checkpoint import checkpoint, run
from mlxhog.cli import main
from mlxhog.report.streams import LastingStream, OutputLost
from tests.pairs import each_of
from tests.training.small import flags, small_config


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


def test_an_observer_whose_pipe_is_closed_does_not_end_the_training(tmp_path):
    calls = []

    def observe(progress):
        calls.append(progress)
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.warns(UserWarning, match="progress cannot be shown any more"):
        result = train(small_config(tmp_path, steps=3), observer=observe)
    assert (result.status, len(calls)) == ("done", 1)
    assert result.checkpoint is not None


def test_a_process_is_spawned_where_the_reader_of_the_output_has_left(monkeypatch):
    """As when a worker is replaced while a program that prints to a closed pipe trains."""
    with broken_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        print("what cannot be flushed")
        process = WorkerProcess(os.getpid, name="child")
        monkeypatch.undo()
    assert process.reap(None) == Death(0)


def test_training_whose_result_nobody_reads_is_saved_and_says_so(tmp_path, monkeypatch, capsys):
    config = small_config(tmp_path, steps=3)
    with broken_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["train", "--json", *flags(config)]) == 3
    assert "the output cannot be written: Broken pipe\n" in capsys.readouterr().err
    (listed,) = run.list_runs(tmp_path / "runs")
    assert listed.read_status()["status"] == "done"
    assert checkpoint.load(checkpoint.latest(listed)).step == 3


@pytest.mark.slow
def test_a_reader_that_leaves_ends_what_only_tells_and_a_list_without_an_error(
    tmp_path, monkeypatch, capsys
):
    run = train(small_config(tmp_path, steps=2)).run
    for words, code, err in (
        (["generate", run, "--max-new-tokens", "1000000"], 3,
         "the output cannot be written: Broken pipe\n"),
        (["runs", "--out", str(Path(run).parent)], 0, ""),  # it had what it wanted
    ):  # fmt: skip
        with broken_pipe() as pipe, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", pipe)
            capsys.readouterr()
            assert main(words) == code
        assert capsys.readouterr().err == err


@pytest.mark.slow
def test_a_command_with_closed_standard_streams_trains(tmp_path):
    """Files that it opens would else get the numbers of these streams, and workers write there."""
    config = small_config(tmp_path, steps=3)
    command = [sys.executable, "-m", "mlxhog", "train", *flags(config)]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, timeout=120, check=False).returncode == 0
    (listed,) = run.list_runs(tmp_path / "runs")
    assert listed.read_status()["status"] == "done"
