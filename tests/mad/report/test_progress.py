"""The progress of a running study, and short names of architectures."""

import io
import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.report import progress
from mlxhog.mad.report.progress import compact, shown, state_line
from mlxhog.mad.study.scheduler import StudyProgress
from mlxhog.models.mad.sequence import parse
from tests.mad.report.sample import STUDY, runs


@given(st.lists(st.sampled_from(["mlstm", "swiglu", "slstm"]), min_size=1, max_size=12))
def test_repeats_are_counted_and_a_compact_sequence_reads_back_as_itself(layers):
    assert compact(["mlstm", "swiglu"] * 7 + ["slstm"] * 3) == "(mlstm swiglu)*7 slstm*3"
    assert parse(compact(layers)) == parse(" ".join(layers))


FAILED = replace(
    runs()[0], status="failed", reason="killed: \x1b[2J [9]",
    candidate="mlstm(heads=4) swiglu " * 7 + "slstm(heads=4) swiglu",
)  # fmt: skip
PROGRESS = StudyProgress(
    study="first", done=17, total=24, elapsed_s=252.0, eta_s=370.0,
    statuses={"done": 15, "diverged": 1, "failed": 1},
    best=replace(
        STUDY.score_of(runs()[:18]), score=0.8312, interval=0.0214, missing=("one", "two")
    ),
    troubles=(replace(runs()[1], status="diverged"), FAILED),
)  # fmt: skip


def test_runs_time_and_best_are_a_line_and_what_is_not_known_yet_is_a_dash():
    assert state_line(PROGRESS) == (
        "study first  17 of 24 runs (71%)  04:12  ETA 06:10  1 diverged  1 failed  "
        "best 0.831 ± 0.021 (2 runs missing) gated-conv swiglu"
    )
    beyond = replace(PROGRESS.best, objective=-1e9, beyond=("params <= 1k",))
    assert "best 0.831 ± 0.021 (2 runs missing), beyond its limits gated-conv" in state_line(
        replace(PROGRESS, best=beyond)
    )
    nothing_yet = StudyProgress(study="first", done=0, total=None)
    assert state_line(nothing_yet) == "study first  0 runs  00:00  ETA -"


def test_a_pipe_gets_every_message_and_failure_once_and_the_state_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", math.inf)
    for quiet in (False, True):
        stream = io.StringIO()
        with shown(stream, quiet=quiet) as show:
            for k in range(6):
                message = "worker 2 restarted" if k == 3 else None
                show(replace(PROGRESS, done=17 + k, message=message))
        text, n = " ".join(stream.getvalue().split()), 0 if quiet else 1
        for once in ("worker 2 restarted", "study first", "17 of 24 runs", "[9]",
                     "failed in-context-recall", "(mlstm(heads=4) swiglu)*7"):  # fmt: skip
            assert text.count(once) == n, once
        assert "\x1b" not in text
