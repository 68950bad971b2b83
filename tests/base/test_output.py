"""Standard streams that nobody reads, or that are no streams, delay and end no work."""

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from mlxhog import train
from mlxhog.base.output import LastingStream, OutputLost, lasting, may_redraw
from mlxhog.checkpoint import run as runs
from mlxhog.display.plain import PlainLines
from mlxhog.display.terminal import LiveTable
from mlxhog.display.views import StatusLine, observer
from tests.display.sample_run import PROGRESS
from tests.pairs import each_of
from tests.threads import begin, join, wait_until
from tests.training.small import flags, small_config

LONG = "0123456789abcde\n" * 20_000  # more than a pipe holds


@pytest.fixture
def pipe():
    """A pipe: the end to read, and streams that write to it."""
    read, write = os.pipe()
    streams = [open(os.dup(write), "w", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
    os.close(write)
    yield read, streams
    with contextlib.suppress(OSError):
        os.close(read)
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.close()


@contextlib.contextmanager
def paused_terminal():
    """A terminal after Ctrl-S: its two ends."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    try:
        yield ours, theirs
    finally:
        termios.tcflow(theirs, termios.TCOON)
        os.close(ours)
        os.close(theirs)


def read_all(read, streams):
    """What comes out of the pipe until nobody can write to it any more."""
    text = bytearray()

    def collect():
        while piece := os.read(read, 1 << 16):
            text.extend(piece)

    reader = threading.Thread(target=collect)
    reader.start()
    for stream in streams:
        assert lasting(stream).drain(60.0)
    for stream in streams:
        stream.close()
    reader.join(60.0)
    return text.decode()


def test_text_for_a_reader_that_sleeps_waits_in_its_common_order_and_delays_nobody(pipe):
    read, (one, two) = pipe
    out, err = LastingStream(one), LastingStream(two)
    out.write(LONG)
    for number in range(100):
        print(number, file=(out, err)[number % 2], flush=True)
    assert out.is_behind
    assert not err.drain(0.0)
    assert read_all(read, (one, two)) == LONG + "".join(f"{n}\n" for n in range(100))
    assert (out.failure, err.failure) == (None, None)


def test_messages_that_nobody_reads_are_bounded_and_what_is_missing_is_counted(pipe):
    read, (one, _) = pipe
    stream = LastingStream(one, max_bytes=1000)
    for text in (LONG, "left out\n", "left\nout\n"):
        stream.write(text)
    assert stream.is_behind
    reader = threading.Thread(target=lambda: stream.drain(60.0) and stream.write("read\n"))
    reader.start()
    text = bytearray()
    while not text.endswith(b"\nread\n"):
        text += os.read(read, 1 << 16)
    reader.join()
    assert text.decode() == f"{LONG}(3 lines are missing here: nothing read them)\nread\n"


def test_a_result_for_a_reader_that_sleeps_is_given_up_but_not_on_a_terminal(pipe):
    stream = LastingStream(pipe[1][0])
    stream.write(LONG)
    stream.end(0.0)
    assert isinstance(stream.failure, TimeoutError)
    with paused_terminal() as (_, theirs), open(theirs, "w", closefd=False) as terminal:
        stream = LastingStream(terminal)
        stream.write("result\n")
        stream.end(0.0)
        assert stream.failure is None


def test_output_that_is_all_waits_for_its_reader_until_a_signal_and_ends_without_one(pipe):
    read, (one, two) = pipe
    stream, main = LastingStream(one, ends=True), threading.get_ident()
    is_raised = threading.Event()

    def once(*_):
        if not is_raised.is_set():
            is_raised.set()
            raise KeyboardInterrupt

    def interrupt():  # Python notes a signal right before a wait only at the next one
        while not is_raised.wait(0.01):
            if stream.is_behind:
                signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    usual = signal.signal(signal.SIGINT, once)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        stream.write(LONG)
    thread.join()
    signal.signal(signal.SIGINT, usual)
    stream.write("what a command prints after it")
    stream.flush()
    os.close(read)
    wait_until(lambda: stream.failure, what="the error of the closed pipe")
    with pytest.raises(OutputLost):
        stream.flush()


class Writer:
    """As an embedded console: no `flush`, no `isatty`, no encoding."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Raising(Writer):
    def write(self, text):
        raise RuntimeError("this console was closed")

    def isatty(self):
        raise RuntimeError("this console was closed")

    flush = isatty


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@each_of("odd", [None, Writer(), Raising(), closed(), object()])
def test_views_work_on_a_stream_that_is_none(odd):
    with observer(odd) as view:
        view(replace(PROGRESS, message="worker 2 restarted"))
    with StatusLine(odd, quiet=False) as line:
        line("part", "step")
        line.tell("a line that stays")
    if type(odd) is Writer:
        assert "worker 2 restarted\n" in odd.text
        assert odd.text.endswith("part ...\na line that stays\n")


def test_a_program_with_odd_streams_trains(tmp_path, monkeypatch):
    for name, odd in (("stdout", None), ("stdin", None), ("stderr", Raising())):
        monkeypatch.setattr(sys, name, odd)
    assert train(small_config(tmp_path, steps=2)).status == "done"


def on_screen(stream):
    return LiveTable(Console(file=stream, force_terminal=True, width=100))


@each_of("make", [PlainLines, on_screen])
def test_a_view_that_fell_behind_shows_every_message_and_then_the_newest_state(make, pipe):
    read, (one, _) = pipe
    stream = LastingStream(one)
    stream.write(LONG)
    with make(stream) as view:
        for step in range(100, 200):
            view(replace(PROGRESS, step=step, message=f"message {step}."))

        def show_newest():
            assert stream.drain(60.0)
            view(replace(PROGRESS, step=7777))

        (thread,) = begin(lambda act: act(), [show_newest])
        text = b""
        while b"step 7777" not in text:
            text += os.read(read, 1 << 16)
        join([thread])
    assert all(b"message %d." % step in text for step in range(100, 200))
    assert not any(b"step %d " % step in text for step in range(100, 200))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@each_of(
    ("environ", "redraws"),
    [
        ({"TERM": "xterm"}, True), ({"TERM": "xterm", "CI": "false"}, True),
        ({"TERM": "dumb"}, False), ({"TERM": "xterm", "CI": "true"}, False),
        ({"TERM": "xterm-color", "JPY_PARENT_PID": "17"}, False),
        ({"TERM": "xterm", "COLAB_RELEASE_TAG": "release-colab"}, False),
        ({"TERM": "xterm", "KAGGLE_KERNEL_RUN_TYPE": "Batch"}, False),
    ],
)  # fmt: skip
def test_a_picture_is_redrawn_only_on_a_terminal_that_somebody_looks_at(environ, redraws):
    assert may_redraw(Terminal(), environ) == redraws
    assert isinstance(observer(Terminal(), environ=environ), LiveTable if redraws else PlainLines)


@pytest.mark.slow
@each_of("more", [[], ["--json", "--quiet"]])
def test_a_run_on_a_paused_terminal_saves_and_ends(more, tmp_path):
    config = small_config(tmp_path, steps=20, save_every="5", eval_every="10", name="paused")
    command = [sys.executable, "-m", "mlxhog", "train", *more, *flags(config)]
    with paused_terminal() as (_, theirs):
        ended = subprocess.run(command, stdout=theirs, stderr=theirs, timeout=240, check=False)
    assert ended.returncode == 0
    (run,) = runs.list_runs(tmp_path / "runs")
    assert (run.read_status()["status"], run.read_status()["steps"]) == ("done", 20)
