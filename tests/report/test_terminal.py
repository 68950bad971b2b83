"""A run on a terminal, in a pipe and in a notebook."""

import io
from dataclasses import replace

from mlxhog.report.metrics import Activity, Doing
from mlxhog.report.plain import PlainLines
from mlxhog.report.terminal import LiveTable, scale
from mlxhog.report.views import StatusLine, observer
from tests.pairs import each_of
from tests.report.sample_run import PROGRESS, WORKER


class Terminal(io.StringIO):
    def isatty(self):
        return True


@each_of(
    ("value", "left", "right"),
    [(6.0, "uniform", "unigram"), (3.0, "bigram", "gzip"), (1.6, "xz", "")],
)
def test_the_scale_marks_a_value_between_its_neighbours(value, left, right):
    names, axis, _ = scale(value)
    assert axis.index("o") > names.index(left)
    assert not right or axis.index("o") < names.index(right)
    for odd in (None, 0.1, 8.0, 99.0, float("nan"), float("inf")):
        assert all(len(line) <= 64 for line in scale(odd))


def test_plain_lines_come_at_most_every_interval_and_messages_and_activities_once():
    seconds = iter(float(t) for t in range(1000))
    stream = io.StringIO()
    words = "strategy hogwild: " + "a gradient takes the workers 99.1 ms; " * 5
    many = tuple(replace(WORKER, slot=k) for k in range(1, 65))
    with PlainLines(stream, every_s=10.0, clock=lambda: next(seconds)) as lines:
        for k in range(6):
            message = None if k else words
            lines(replace(PROGRESS, step=640 + k, message=message, sample="word " * 80))
        for percent in range(101):
            lines(replace(PROGRESS, doing=Doing(Activity.EVALUATING, percent)))
        lines(replace(PROGRESS, doing=Doing(Activity.SAMPLING)))
        for k in range(20):
            lines(replace(PROGRESS, step=700 + k, workers=many))
    text = stream.getvalue()
    flat = " ".join(text.split())
    assert [flat.count(one) for one in (words.strip(), "sample: word word", "step 640")] == [1] * 3
    assert "[1 mlx:cpu running 352 steps 17.2k tok/s staleness 1.1]" in flat
    assert "64 workers: 64 running" in flat
    evaluations = [line for line in text.split("\n") if line.startswith("evaluating")]
    assert evaluations[0] == "evaluating 0 %"
    assert 8 <= len(evaluations) <= 12
    assert "\nsampling\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_terminal_has_a_table_a_pipe_lines_and_quiet_is_quiet():
    for stream, term, view in (
        (Terminal(), "xterm", LiveTable), (Terminal(), "dumb", PlainLines),
        (io.StringIO(), "xterm", PlainLines),
    ):  # fmt: skip
        assert isinstance(observer(stream, environ={"TERM": term}), view)
        with observer(stream, quiet=True, environ={}) as quiet:
            quiet(replace(PROGRESS, message="worker 2 restarted", sample="The people"))
        assert stream.getvalue() == ""


def test_a_line_that_stays_is_printed_beside_the_one_that_changes():
    stream = Terminal()
    with StatusLine(stream, quiet=False) as line:
        line("pair [1]", "scoring both")
        line.tell("pair [1]: A 2.1  B 2.2")
    assert stream.getvalue().count("pair [1]: A 2.1  B 2.2\n") == 1
