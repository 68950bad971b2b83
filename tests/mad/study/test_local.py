"""Events of a run in a worker process; no process outlives the study."""

import functools
import multiprocessing
import os
import re

import pytest

from mlxhog.arena import process
from mlxhog.errors import WorkerFailed
from mlxhog.mad.study.workers import Pool
from tests.mad.study import small
from tests.mad.study.small import config, go, processes, result, study
from tests.processes import alive, workers_of


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert multiprocessing.active_children() == []


def pool(tmp_path, run, *, silence_s=small.SILENCE_S):
    return Pool(run, parallel=1, threads=1, logs=tmp_path / "logs", silence_s=silence_s)


def go_wrong(store, wrong, *, observer=lambda progress: None, **how):
    """A session of one candidate with some failing runs."""
    executor = processes(store, functools.partial(small.goes_wrong, wrong=wrong), **how)
    return go(store, candidates=1, executor=executor, observer=observer)


def of(executor):
    """The next event of any run."""
    while True:
        if outcome := executor.events(10.0):
            return outcome


def where(config, *, callbacks, rungs):
    os.environ.setdefault("FIRST", str(config.seed))
    print("first run of this process:", os.environ["FIRST"])
    threads = [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    return small.RunResult(
        status="done", steps=os.getpid(), seconds=0.0, loss=0.0, acc_token=0.0, acc_macro=0.0,
        reason=" ".join([*threads, os.environ["FIRST"]]),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("spawned_workers")
def test_a_worker_serves_many_runs_with_one_thread_and_leaves_with_its_executor(tmp_path):
    with pool(tmp_path, where) as executor:
        results = []
        for n in range(3):
            executor.submit(config(n=n), ())
            assert executor.free() == 0
            results += of(executor)
        assert workers_of(os.getpid()) == [results[0].value.steps]
    assert [event.value.reason for event in results] == ["1 1 0"] * 3
    assert len({event.value.steps for event in results}) == 1
    assert not alive(results[0].value.steps)


def test_a_rung_waits_for_its_answer(tmp_path):
    with pool(tmp_path, small.with_curve) as executor:
        executor.submit(config(), (2,))
        (rung,) = of(executor)
        assert (rung.kind, rung.value.step) == ("rung", 2)
        executor.answer(config().key(), True)
        (end,) = of(executor)
    assert (end.kind, end.value.status, len(end.value.curve)) == ("end", "pruned", 2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("crash", r"^its process crashed \(SIGSEGV\): Fatal Python error: Segmentation fault"),
        ("exit", r"^its process left \(exit code 7\): it left no message"),
        ("leave", "^left with exit code no more"),
        ("raise", "^kernel is -3; a convolution has at least 1 tap"),
    ],
)
def test_a_run_that_goes_wrong_has_failed_with_its_reason_and_the_study_goes_on(
    tmp_path, wrong, words
):
    store = study(tmp_path, candidates=1)
    outcome = go_wrong(store, wrong)
    assert outcome.statuses == {"done": 3, "failed": 1}
    (bad,) = (record for record in store.records() if record.status == "failed")
    assert (bad.label, bad.acc_macro) == ("n=1", 0.0)
    assert re.search(words, bad.reason), bad.reason
    assert "\n" not in bad.reason


@pytest.mark.slow
def test_a_silent_run_is_ended_and_the_study_goes_on(tmp_path):
    store = study(tmp_path, candidates=1)
    outcome = go_wrong(store, "hang", silence_s=2.0)
    assert outcome.statuses == {"done": 3, "failed": 1}
    (bad,) = (record for record in store.records() if record.status == "failed")
    assert "gave no sign of life for 2 s and was ended" in bad.reason


@pytest.mark.slow
def test_a_run_that_shows_signs_of_life_may_take_longer_than_the_silence_allowed(tmp_path):
    with pool(tmp_path, small.patient, silence_s=1.0) as executor:
        executor.submit(config(), ())
        (event,) = of(executor)
    assert event.value.status == "done"


def test_a_run_whose_worker_is_always_killed_has_failed_after_four_attempts(tmp_path):
    store = study(tmp_path, candidates=1)
    messages = []
    outcome = go_wrong(store, "kill", observer=lambda progress: messages.append(progress.message))
    assert outcome.statuses == {"done": 3, "failed": 1}
    (bad,) = (record for record in store.records() if record.status == "failed")
    assert "was killed (SIGKILL)" in bad.reason
    assert "4 times" in bad.reason
    assert len([text for text in messages if text and "it is run again" in text]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("spawned_workers")
def test_a_run_whose_worker_is_killed_from_outside_is_lost_and_not_failed(tmp_path):
    with pool(tmp_path, small.slow) as executor:
        executor.submit(config(), ())
        while not (pids := workers_of(os.getpid())):
            pass
        os.kill(pids[0], 9)
        (event,) = of(executor)
        assert event.kind == "lost"
        executor.submit(config(), ())
        (event,) = of(executor)
    assert event.value == result(config())


def test_a_worker_that_dies_before_its_log_is_open_is_replaced(tmp_path):
    store, deaths = study(tmp_path, candidates=1), tmp_path / "deaths"
    deaths.mkdir()
    executor = processes(store, small.DiesOnArrival(deaths, 2))
    assert go(store, candidates=1, executor=executor).statuses == {"done": 4}
    assert len(list(deaths.iterdir())) == 2


def test_workers_that_all_die_at_their_start_end_the_study_in_words(tmp_path):
    store, deaths = study(tmp_path, candidates=1), tmp_path / "deaths"
    deaths.mkdir()
    executor = processes(store, small.DiesOnArrival(deaths, 9))
    with pytest.raises(WorkerFailed, match=r"3 workers in a row died .* crashed \(SIGSEGV\): it "):
        go(store, candidates=1, executor=executor)


# -- silence, by a clock that the test moves -------------------------------------------------------


@pytest.fixture
def now(monkeypatch):
    now = [10**12]
    monkeypatch.setattr(process, "monotonic_ns", lambda: now[0])
    return now


def begun(executor):
    """Begin a run that is silent, and wait until its worker is ready."""
    executor.submit(config(n=1), ())
    while not executor.runs[config(n=1).key()].host:
        assert executor.events(0.05) == []


HANGS = functools.partial(small.goes_wrong, wrong="hang")


def test_a_pause_of_the_whole_study_is_no_silence_of_a_run(tmp_path, now):
    with pool(tmp_path, HANGS) as executor:
        begun(executor)
        for _ in range(10):
            now[0] += round(10 * small.SILENCE_S * 1e9)
            assert executor.events(0.0) == []
