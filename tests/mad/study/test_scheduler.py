import errno
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.mad.options import ExecutionConfig, Limit
from mlxhog.mad.search.pruning import Pruner
from mlxhog.mad.study.scheduler import seconds_used
from mlxhog.models.mad.sequence import canonical, parse
from tests.mad.study import small
from tests.mad.study.small import go, processes, study, table, texts
from tests.mad.study.test_store import ended
from tests.processes import alive, workers_of
from tests.threads import wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert multiprocessing.active_children() == []


def test_every_run_is_recorded_once_with_its_curve_and_not_run_again(tmp_path):
    store = study(tmp_path, candidates=3)
    reports, how = [], {"candidates": 3, "parallel": 2, "total": 12}
    outcome = go(store, small.with_curve, **how, observer=reports.append)
    assert (outcome.status, outcome.statuses) == ("done", {"done": 12})
    assert {record.candidate for record in store.records()} == set(texts(3))
    assert lines(store.directory) == 12
    assert (reports[-1].done, reports[-1].total, reports[-1].eta_s) == (12, 12, 0.0)
    scores = {one: small.judge([r for r in store.records() if r.candidate == one]).score
              for one in texts(3)}  # fmt: skip
    assert outcome.best == reports[-1].best
    assert outcome.best.candidate == max(scores, key=scores.get)
    for record in store.records():
        assert [point.step for point in store.curve(record.key)] == [1, 2, 3]
    before = (store.directory / "runs.jsonl").read_bytes()
    again = go(store, **how)
    assert (store.directory / "runs.jsonl").read_bytes() == before
    assert (again.statuses, again.best) == ({"done": 12}, outcome.best)


class Halves(Pruner):
    """Ends at step 2 the runs below the best score so far."""

    def __init__(self):
        self.seen = []

    def rungs(self, run):
        return (2,)

    def should_prune(self, run, point):
        return run.label == "n=1"

    def ended(self, run, record):
        self.seen.append((run.label, record.status))


def test_a_pruner_ends_runs_at_rungs_and_learns_of_every_end_also_after_a_resume(tmp_path):
    store = study(tmp_path, candidates=1)
    first = Halves()
    go(store, small.with_curve, candidates=1, pruner=first, limit=Limit(runs=2))
    assert first.seen == [("n=0", "done"), ("n=1", "pruned")]
    again = Halves()
    go(store, small.with_curve, candidates=1, pruner=again)
    assert again.seen == [*first.seen, ("n=2", "done"), ("n=3", "done")]


class GivesUp(Halves):
    """Skips the runs of a candidate that have not begun after one was ended."""

    def is_pruned(self, candidate):
        return any(status == "pruned" for _, status in self.seen)


@pytest.mark.parametrize("cut", [(), (1,), (2,)])
def test_what_a_candidate_that_was_given_up_lacks_is_never_run_and_it_is_told_once(tmp_path, cut):
    store, reports = study(tmp_path, candidates=1), []
    for runs in (*cut, None):
        go(
            store, small.with_curve, candidates=1, pruner=GivesUp(), total=4,
            limit=Limit(runs=runs), observer=reports.append,
        )  # fmt: skip
    assert [record.status for record in store.records()] == ["done", "pruned"]
    assert [one.score is not None for one in store.proposals()] == [False, True]
    assert (reports[-1].done, reports[-1].total) == (2, 2)
    again = go(store, small.with_curve, candidates=1, pruner=GivesUp(), total=4)
    assert (again.status, again.statuses) == ("done", {"done": 1, "pruned": 1})
    assert len(store.proposals()) == 2


# -- samplers --------------------------------------------------------------------------------------


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

    def recall(self, layers):
        self.proposed += 1


def test_a_sampler_is_asked_as_results_arrive_until_it_has_no_more(tmp_path):
    store, sampler = study(tmp_path), Climber()
    outcome = go(store, sampler=sampler, parallel=2)
    assert outcome.status == "done"
    assert [candidate for candidate, _ in sampler.told] == texts(5)
    assert all(0 < score < 1 for _, score in sampler.told)


def test_a_resumed_sampler_has_the_history_of_the_one_before(tmp_path):
    whole, cut = study(tmp_path, "whole"), study(tmp_path, "cut")
    go(whole, sampler=(uninterrupted := Climber()))
    for runs in (3, 9, 10, None):
        go(cut, sampler=(resumed := Climber()), limit=Limit(runs=runs))
    assert resumed.told == uninterrupted.told
    assert table(cut) == table(whole)
    assert cut.proposals() == whole.proposals()


# -- limits ----------------------------------------------------------------------------------------


def test_budgets_count_runs_and_time_of_earlier_sessions(tmp_path):
    store = study(tmp_path)
    assert go(store, limit=Limit(3), total=8).status == "budget"
    assert go(store, limit=Limit(seconds=1e-6), total=8).statuses == {"done": 3}
    assert go(store, limit=Limit(5), parallel=2, total=8).statuses == {"done": 5}
    assert go(store, limit=Limit(8), total=8).status == "done"


def test_time_used_counts_runs_beside_each_other_once():
    def at(second, seconds):
        return ended(second, at=f"2026-01-01T00:00:{second:02}+00:00", seconds=seconds)

    assert seconds_used([]) == 0
    assert seconds_used([at(10, 5), at(11, 5)]) == pytest.approx(6)
    assert seconds_used([at(11, 5), at(10, 5), at(40, 5), at(39, 1)]) == pytest.approx(11)


def test_budgets_are_runs_or_times():
    assert ExecutionConfig(budget="2h").limit == Limit(seconds=7200)
    assert ExecutionConfig(budget="40").limit == Limit(runs=40)
    assert ExecutionConfig().limit == Limit()
    for text in ("0", "h", "", "-3", "1.5", "2 weeks", "nan", "0s"):
        with pytest.raises(ConfigError, match="a number of runs such as 40, or a time such as 2h"):
            ExecutionConfig(budget=text)


# -- failures --------------------------------------------------------------------------------------


def test_failed_runs_are_run_again_only_when_asked_for(tmp_path):
    store = study(tmp_path, candidates=1)
    raises = functools.partial(small.goes_wrong, wrong="raise")
    go(store, candidates=1, executor=processes(store, raises))
    assert go(store, small.quick, candidates=1).statuses["failed"] == 1
    outcome = go(store, small.quick, candidates=1, retry_failed=True)
    assert outcome.statuses == {"done": 4}
    assert outcome.best.score == pytest.approx(small.judge(store.records()).score)  # of all four


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
from pathlib import Path
from tests.mad.study import small
if __name__ == "__main__":
    store = small.study(Path(sys.argv[1]), "s", candidates=4)
    workers = small.processes(store, small.slow, parallel=2)
    outcome = small.go(store, candidates=4, executor=workers)
    print(outcome.status, outcome.statuses)
"""


@pytest.fixture
def session(tmp_path):
    """Starts a scheduler of a 16-run study in a new process."""
    script = tmp_path / "session.py"
    script.write_text(SESSION)
    begun = []

    def start():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        begun.append(
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )
        )  # fmt: skip
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


def lines(store):
    path = store / "runs.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_killing_scheduler_or_workers_three_times_changes_nothing_of_the_final_table(
    tmp_path, session
):
    whole = study(tmp_path, "whole", candidates=4)
    go(whole, candidates=4)
    process = session()
    for n, victim in ((0, "scheduler"), (4, "worker"), (9, "scheduler")):
        wait_until(lambda n=n: lines(tmp_path / "s") >= n)
        workers = wait_until(lambda pid=process.pid: workers_of(pid))
        if victim == "worker":
            os.kill(workers[-1], signal.SIGKILL)
            continue
        process.kill()
        process.wait()
        wait_until(lambda pids=workers: not any(map(alive, pids)))
        process = session()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert table(study(tmp_path, "s", candidates=4)) == table(whole)
    assert len(table(whole)) == 16


@pytest.mark.slow
def test_ctrl_c_lets_runs_end_and_a_second_one_drops_them(tmp_path, session):
    process = session()
    wait_until(lambda: lines(tmp_path / "s") >= 2)
    os.killpg(process.pid, signal.SIGINT)  # as in a terminal: the workers also get it
    output, _ = process.communicate(timeout=60)
    assert output.startswith("interrupted"), output
    ended = lines(tmp_path / "s")
    assert 2 <= ended < 16
    process = session()
    wait_until(lambda: lines(tmp_path / "s") > ended)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output.startswith("interrupted"), output
    assert not any(map(alive, workers))
    assert go(study(tmp_path, "s", candidates=4), candidates=4).statuses == {"done": 16}
