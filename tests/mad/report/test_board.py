"""The board of a running study: plain lines, a live picture, and names of architectures."""

import io
import re
from dataclasses import replace
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mlxhog.cli.mad.study import observer
from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.report.board import LiveBoard, PlainBoard, folded, short
from mlxhog.mad.run import Point
from mlxhog.mad.study.scheduler import Best, StudyProgress
from mlxhog.mad.study.workers import Running
from tests.mad.report.sample import RECORD
from tests.mad.study.small import config
from tests.pairs import each_of

SEQUENCES = st.lists(st.sampled_from(["mlstm", "swiglu", "slstm"]), min_size=1, max_size=12)


def unfolded(text):
    results = []
    for group, one, times in re.findall(r"(?:\(([^)]*)\)|(\S+?))(?:\*(\d+))?(?:\s|$)", text):
        results += (group or one).split() * int(times or 1)
    return results


@each_of(
    ("layers", "text"),
    [
        ("mlstm swiglu slstm swiglu", "mlstm swiglu slstm swiglu"),
        ("mlstm swiglu mlstm swiglu", "(mlstm swiglu)*2"),
        ("mlstm swiglu " * 7 + "slstm swiglu", "(mlstm swiglu)*7 slstm swiglu"),
        ("mlstm mlstm mlstm", "mlstm*3"),
    ],
)
def test_repeats_are_counted(layers, text):
    assert folded(layers.split()) == text


@given(SEQUENCES)
def test_a_folded_sequence_unfolds_to_itself(layers):
    assert unfolded(folded(layers)) == layers


@given(SEQUENCES, st.integers(0, 40))
def test_a_shortened_sequence_fits_its_column(layers, width):
    assert len(short(" ".join(layers), width)) <= width


LONG = "mlstm(heads=4) swiglu " * 7 + "slstm(heads=4) swiglu"


def run(candidate, label, steps):
    protocol = Protocol(optimizer=PUBLISHED, lr=5e-4, steps=steps)
    return replace(config(), candidate=candidate, label=label, protocol=protocol)


def trouble(candidate, status, reason):
    run = config().to_dict()
    return replace(RECORD, candidate=candidate, config=run, status=status, reason=reason)


POINT = Point(step=400, seconds=31.0, loss=1.0, acc_token=0.4123, acc_macro=0.4)
NOTHING_YET = StudyProgress(study="first", done=0, total=24)
PROGRESS = StudyProgress(
    study="first",
    done=17,
    total=24,
    elapsed_s=252.0,
    eta_s=370.0,
    statuses={"done": 15, "diverged": 1, "failed": 1},
    running=(
        Running(run("mlstm swiglu mlstm swiglu", "vocab=32", 800), "1", 0.0, point=POINT),
        Running(run(LONG, "baseline", 400), "2", 0.0),
    ),
    best=Best(candidate="gated-conv swiglu", score=0.8312, interval=0.0214, missing=2),
    troubles=(
        trouble("gla swiglu", "diverged", ""),
        trouble(LONG, "failed", "killed: [9]"),
    ),
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(progress, width=200):
    console = Console(record=True, width=width, file=io.StringIO())
    with patch("time.monotonic", return_value=31.0):
        console.print(LiveBoard(console).picture(progress))
    return console.export_text()


def test_the_board_shows_runs_time_best_and_failures_and_no_line_wraps():
    for width in (20, 40, 80, 200):
        lines = drawn(PROGRESS, width).splitlines()
        assert len(lines) == 6  # heading, best, two runs, two failures
        assert all(len(line) <= width for line in lines)
    for what in (
        "study first  17 of 24 runs (71%)  04:12  ETA 06:10  1 diverged  1 failed",
        "best 0.831 ± 0.021 (2 runs missing) gated-conv swiglu",
        "1: 00:31  step 400/800  acc 0.412  in-context-recall vocab=32",
        "(mlstm swiglu)*2",
        "killed: [9]",
    ):
        assert what in "\n".join(lines)


def test_what_is_not_known_yet_is_a_dash():
    text = drawn(NOTHING_YET)
    assert "ETA -" in text
    assert "best -" in text
    text = drawn(replace(PROGRESS, total=None))
    assert "17 runs" in text
    assert "%" not in text


def test_a_reason_cannot_send_control_codes_or_markup_to_the_terminal():
    unsafe = trouble("gla", "failed", "\x1b[2J [bold]x[/bold]")
    text = drawn(replace(PROGRESS, troubles=(unsafe,)))
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text


def test_plain_lines_tell_every_failure_once_and_progress_now_and_then():
    seconds = iter(float(t) for t in range(100))
    stream = io.StringIO()
    with PlainBoard(stream, every_s=10.0, clock=lambda: next(seconds)) as board:
        for k in range(6):
            board(replace(PROGRESS, done=17 + k, message="worker 2 restarted"))
    text = stream.getvalue()
    assert text.count("worker 2 restarted") == 1
    assert text.count("killed: [9]") == 1
    assert text.count("17 of 24 runs") == 1
    assert text.count("study first") < 6


@each_of(
    ("stream", "quiet", "environ"),
    [
        (io.StringIO(), False, {}),
        (Terminal(), False, {"TERM": "dumb"}),
    ],
    ids=["no terminal", "dumb terminal"],
)
def test_plain_lines_when_there_is(stream, quiet, environ):
    assert isinstance(observer(stream, quiet=quiet, environ=environ), PlainBoard)


def test_the_live_board_keeps_its_last_picture_and_prints_a_message_once():
    console = Console(record=True, width=100, file=Terminal(), force_terminal=True)
    with LiveBoard(console) as board:
        board(replace(PROGRESS, message="worker 2 restarted"))
        board(replace(PROGRESS, message="worker 2 restarted"))
    text = console.export_text()
    assert text.count("worker 2 restarted") == 1
    assert "17 of 24 runs" in text
