"""Events of a run in a worker process; no process outlives the study."""

import functools
import multiprocessing
import os
import re

import pytest

from tests.mad.study import small
from tests.mad.study.small import config, go, processes, study
from tests.processes import alive, workers_of


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert multiprocessing.active_children() == []


def of(executor):
    """The next event of any run."""
    while True:
        if events := executor.events(10.0):
            return events[0]


def where(config, *, callbacks, rungs):
    os.environ.setdefault("FIRST", str(config.seed))
    threads = [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    return config.record(
        "done", steps=os.getpid(), reason=" ".join([*threads, os.environ["FIRST"]])
    )


@pytest.mark.slow
@pytest.mark.usefixtures("spawned_workers")
def test_a_worker_serves_many_runs_with_one_thread_and_leaves_with_its_executor(tmp_path):
    with processes(study(tmp_path), where) as executor:
        records = []
        for n in range(3):
            executor.submit(config(n=n), ())
            assert executor.free() == 0
            records.append(of(executor)[2])
        assert workers_of(os.getpid()) == [records[0].steps]
    assert [record.reason for record in records] == ["1 1 0"] * 3
    assert len({record.steps for record in records}) == 1
    assert not alive(records[0].steps)


def test_a_rung_waits_for_its_answer(tmp_path):
    with processes(study(tmp_path), small.with_curve) as executor:
        executor.submit(config(), (2,))
        _, kind, point = of(executor)
        assert (kind, point.step) == ("rung", 2)
        executor.answer(config().key(), True)
        _, kind, record = of(executor)
    assert (kind, record.status, len(record.curve)) == ("end", "pruned", 2)


def test_runs_that_go_wrong_have_failed_with_their_reasons_and_the_study_goes_on(tmp_path):
    store, messages = study(tmp_path, candidates=1), []
    ways = {
        "crash": r"^its process crashed \(SIGSEGV\): Fatal Python error: Segmentation fault",
        "exit": r"^its process left \(exit code 7\): it left no message",
        "leave": "^left with exit code no more",
        "raise": "^kernel is -3; a convolution has at least 1 tap",
        "kill": r"^its process was killed \(SIGKILL\), .*, 4 times",
    }
    run = functools.partial(small.goes_wrong, wrong=" ".join(ways))
    outcome = go(
        store, candidates=1, runs=7, executor=processes(store, run),
        observer=lambda progress: messages.append(progress.message),
    )  # fmt: skip
    assert outcome.statuses == {"done": 2, "failed": 5}
    failed = {record.label: record for record in store.records() if record.status == "failed"}
    for n, words in enumerate(ways.values(), start=1):
        assert re.search(words, failed[f"n={n}"].reason), failed[f"n={n}"].reason
        assert "\n" not in failed[f"n={n}"].reason
    assert len([text for text in messages if text and "it is run again" in text]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("spawned_workers")
def test_a_run_whose_worker_is_killed_from_outside_is_lost_and_not_failed(tmp_path):
    with processes(study(tmp_path), small.slow) as executor:
        executor.submit(config(), ())
        while not (pids := workers_of(os.getpid())):
            pass
        os.kill(pids[0], 9)
        assert of(executor)[1] == "lost"
        executor.submit(config(), ())
        assert of(executor)[2].status == "done"
