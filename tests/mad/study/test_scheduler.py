"""A session of a study: every run once, whatever dies; samplers and pruners are told of each."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest

from mlxhog import mad
from mlxhog.base.quantities import Interval
from mlxhog.errors import EnvironmentLacks
from mlxhog.mad.samplers.pruning import Pruner
from mlxhog.mad.study.scheduler import seconds_used
from mlxhog.mad.study.store import open_store
from mlxhog.models.mad.sequence import canonical, parse
from tests.mad.report.sample import RECORD
from tests.mad.study import small
from tests.mad.study.small import go, lines, study, table, texts
from tests.pairs import each_of
from tests.processes import alive, workers_of
from tests.threads import LIMIT_S, wait_until

ROOT = Path(__file__).parents[3]


def test_every_run_is_recorded_once_with_its_curve_and_not_run_again(tmp_path):
    store, reports = study(tmp_path, candidates=3), []
    outcome = go(store, small.with_curve, parallel=2, observer=reports.append)
    assert (outcome.status, outcome.statuses) == ("done", {"done": 12})
    assert {record.candidate for record in store.records()} == set(texts(3))
    assert (reports[-1].done, reports[-1].total, reports[-1].eta_s) == (12, 12, 0.0)
    scores = Counter()
    for record in store.records():
        scores[record.candidate] += record.acc_macro
    assert outcome.best.candidate == scores.most_common(1)[0][0]
    for record in store.records():
        assert [point.step for point in store.curve(record.key)] == [1, 2, 3]
    before = (store.directory / "runs.jsonl").read_bytes()
    again = go(store)
    assert (store.directory / "runs.jsonl").read_bytes() == before
    assert (again.statuses, again.best) == ({"done": 12}, outcome.best)


def test_of_equal_scores_the_best_is_the_first_of_the_leaderboard_whatever_ended_first(tmp_path):
    candidates = "gated-conv swiglu swiglu", "gated-conv swiglu"
    store = open_store(replace(small.definition(), candidates=candidates), tmp_path, "s")
    outcome = go(store, small.always_right)
    assert outcome.best.candidate == mad.Study(store).best.candidate == candidates[1]


class Second(Pruner):
    """Ends the run of seed 1 at step 2, and skips runs after it if it `gives_up`."""

    def __init__(self, *, gives_up=False):
        self.seen, self.gives_up = [], gives_up

    def rungs(self, run):
        return (2,)

    def should_prune(self, run, point):
        return run.seed == 1

    def ended(self, run, record):
        self.seen.append((run.seed, record.status))

    def is_pruned(self, candidate):
        return self.gives_up and any(status == "pruned" for _, status in self.seen)


def test_a_pruner_ends_runs_at_rungs_and_learns_of_every_end_also_after_a_resume(tmp_path):
    store = study(tmp_path, candidates=1)
    first, again = Second(), Second()
    go(store, small.with_curve, pruner=first, n_runs=2)
    assert first.seen == [(0, "done"), (1, "pruned")]
    go(store, small.with_curve, pruner=again)
    assert again.seen == [*first.seen, (2, "done"), (3, "done")]


@each_of("cut", [(), (1,), (2,)])
def test_what_a_candidate_that_was_given_up_lacks_is_never_run_and_it_is_told_once(tmp_path, cut):
    store = study(tmp_path, candidates=1)
    for runs in (*cut, None, None):
        last = go(store, small.with_curve, pruner=Second(gives_up=True), n_runs=runs)
    assert [record.status for record in store.records()] == ["done", "pruned"]
    assert [one.score is not None for one in store.proposals()] == [False, True]
    assert (last.status, last.done, last.total) == ("done", 2, 2)


class Climber:
    """Proposes one more tap than the best score had, once."""

    def __init__(self):
        self.proposed, self.best, self.told = 1, 1, []

    def ask(self):
        if self.best == 6 or self.proposed > self.best:
            return None
        self.proposed += 1
        return parse(f"gated-conv(kernel={self.proposed})")

    def tell(self, layers, score):
        self.told.append((canonical(layers), score))
        self.best = max(self.best, layers[0].kernel)

    def register(self, layers):
        self.proposed += 1


def test_a_sampler_is_asked_as_results_arrive_and_a_resumed_one_has_the_history(tmp_path):
    whole, cut = (study(tmp_path, name, candidates=5) for name in ("whole", "cut"))
    assert go(whole, sampler=(uninterrupted := Climber()), parallel=2).status == "done"
    assert [candidate for candidate, _ in uninterrupted.told] == texts(5)
    assert all(0 < score < 1 for _, score in uninterrupted.told)
    for runs in (3, 9, 10, None):
        go(cut, sampler=(resumed := Climber()), n_runs=runs)
    assert resumed.told == uninterrupted.told
    assert table(cut) == table(whole)
    assert cut.proposals() == whole.proposals()


def test_budgets_count_whole_candidates_and_time_of_earlier_sessions(tmp_path):
    store, totals = study(tmp_path, candidates=3), []
    assert go(store, limit=Interval(1), n_runs=3).status == "budget"
    assert go(store, limit=Interval(seconds=1e-6)).statuses == {"done": 3}
    rest = go(store, limit=Interval(1), observer=lambda progress: totals.append(progress.total))
    assert (rest.statuses, totals[-1]) == ({"done": 4}, 4)
    assert go(store, limit=Interval(2), parallel=2).statuses == {"done": 8}
    assert go(store, limit=Interval(2)).status == "budget"
    assert go(store, limit=Interval(3)).status == "done"


def test_time_used_counts_runs_beside_each_other_once():
    at = "2026-01-01T00:00:{}+00:00".format
    ends = [(11, 5), (10, 5), (40, 5), (39, 1)]
    records = [replace(RECORD, at=at(second), seconds=seconds) for second, seconds in ends]
    assert [seconds_used(records[:n]) for n in (0, 2, 4)] == pytest.approx([0, 6, 11])


def test_runs_that_go_wrong_have_failed_with_their_reasons_and_the_next_session_runs_them_again(
    tmp_path,
):
    store, messages = study(tmp_path, candidates=1, runs=7), []
    ways = {
        "crash": r"^the process ended \(signal SIGSEGV\): Fatal Python error: Segmentation fault",
        "exit": r"^the process ended \(exit code 7\): it left no message",
        "leave": "^left with exit code no more",
        "raise": "^kernel is -3; a convolution has at least 1 tap",
        "kill": r"^its process was killed \(SIGKILL\), perhaps for .*--parallel.* GiB .*, 4 times",
    }
    outcome = go(store, small.goes_wrong, observer=lambda now: messages.append(now.message))
    assert outcome.statuses == {"done": 2, "failed": 5}
    failed = {record.seed: record for record in store.records() if record.status == "failed"}
    for n, words in enumerate(ways.values(), start=1):
        assert re.search(words, failed[n].reason), failed[n].reason
        assert "\n" not in failed[n].reason
    assert len([text for text in messages if text and "it is run again" in text]) == 3
    outcome = go(store)
    assert outcome.statuses == {"done": 7}
    assert outcome.best.selection_score == pytest.approx(
        fmean(one.acc_macro for one in store.records())
    )


@pytest.mark.slow
def test_a_run_that_loses_its_gpu_is_no_result_and_is_tried_again_in_a_new_process(tmp_path):
    store, messages = study(tmp_path, candidates=1), []
    run = partial(small.loses_its_gpu, folder=tmp_path)
    outcome = go(store, run, observer=lambda now: messages.append(now.message))
    assert outcome.statuses == {"done": 4}
    again = [text for text in messages if text and "its process lost its GPU" in text]
    assert len(again) == 3, "one run of each process but the last"
    assert len(list(tmp_path.glob("process-*"))) == 4
    log = (store.directory / "logs" / "worker-1.log").read_text()
    assert small.METAL_SAYS in log
    assert "LostGPU: torch:mps lost work" in log


def test_a_full_disk_ends_the_session_and_the_study_can_be_resumed(tmp_path, monkeypatch):
    store = study(tmp_path)
    write, left = os.write, [5]

    def full(descriptor, data):
        if bytes(data[:6]) == b'{"key"':
            left[0] -= 1
            if left[0] < 0:
                write(descriptor, data[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(EnvironmentLacks, match=r"disk became full while writing .*runs.jsonl"):
        go(store)
    monkeypatch.undo()
    assert len(store.records()) == 5
    assert go(store).statuses == {"done": 8}


SESSION = """
import sys
from functools import partial
from pathlib import Path
from tests.mad.study import small
folder = Path(sys.argv[1])
run = partial(small.held, folder=folder)
outcome = small.go(small.study(folder, candidates=4), run, parallel=2)
print(outcome.status, outcome.statuses)
"""


@pytest.fixture
def session(tmp_path):
    """Starts a scheduler of a 16-run study in a new process; its runs wait to be allowed."""
    with ExitStack() as begun:

        def start():
            process = subprocess.Popen(
                [sys.executable, "-c", SESSION, str(tmp_path)],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
            begun.callback(process.communicate)
            begun.callback(process.kill)
            return process

        yield start


@pytest.mark.slow
def test_killing_scheduler_or_workers_and_ctrl_c_change_nothing_of_the_final_table(
    tmp_path, session
):
    whole = study(tmp_path, "whole", candidates=4)
    go(whole)

    def allow(n):
        """Let n runs end in all; at most one more does, since two may look at the same time."""
        (tmp_path / "allowed").write_bytes(bytes(n))

    allow(0)
    process = session()
    for n, victim in ((0, "scheduler"), (3, "worker"), (6, "scheduler")):
        allow(n)
        wait_until(lambda n=n: lines(tmp_path / "s") >= n)
        workers = wait_until(lambda pid=process.pid: workers_of(pid))
        if victim == "worker":
            os.kill(workers[-1], signal.SIGKILL)
            continue
        process.kill()
        process.wait()
        wait_until(lambda pids=workers: not any(map(alive, pids)))
        process = session()
    allow(9)
    wait_until(lambda: lines(tmp_path / "s") >= 9)
    os.killpg(process.pid, signal.SIGINT)  # as in a terminal: the workers also get it
    allow(16)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert output.startswith("interrupted"), output
    assert 9 <= lines(tmp_path / "s") < 16
    cut = study(tmp_path, "s", candidates=4)
    assert go(cut).statuses == {"done": 16}
    assert table(cut) == table(whole)
