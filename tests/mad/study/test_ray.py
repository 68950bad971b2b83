"""The other executor: the same runs, the same store, the same reasons."""

import contextlib
import functools
import importlib.util
import os
import signal
import subprocess
import sys
import warnings
from multiprocessing import resource_tracker

import pytest

from mlxhog.cli import main
from mlxhog.errors import EnvironmentLacks
from mlxhog.mad.options import Limit
from mlxhog.mad.study import ray as ours
from mlxhog.mad.study import scheduler
from mlxhog.mad.study.store import Store
from tests.mad.study import small
from tests.mad.study.small import ON_MLX, TINY, assert_same_studies, go, study
from tests.mad.study.test_scheduler import ROOT, Halves, lines
from tests.processes import alive, below
from tests.threads import wait_until

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"
)


@pytest.fixture(autouse=True)
def _search_path(monkeypatch):
    """The search path of modules; a study with Ray changes it, and other tests need the old one."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")


@pytest.fixture
def through_ray(spawned_workers):
    """Runs a session of a study through Ray, which is started for it."""

    def session(store, run, *, silence_s, **how):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray; newer versions have more
            with ours.cluster(run, parallel=2, threads=1, silence_s=silence_s) as executor:
                return go(store, executor=contextlib.nullcontext(executor), **how)

    resource_tracker.ensure_running()  # it stays, for the other tests
    before = set(below(os.getpid()))
    yield session
    assert not [pid for pid in below(os.getpid()) if pid not in before and alive(pid)]


@pytest.mark.slow
@needs_ray
def test_a_study_continues_on_ray_with_rungs_curves_and_reasons(tmp_path, through_ray, monkeypatch):
    monkeypatch.setattr(scheduler, "MOST_LOSSES", 1)
    store = study(tmp_path, candidates=1)
    run = functools.partial(small.goes_wrong, wrong="curve crash hang raise")
    go(store, candidates=1, runs=5, limit=Limit(runs=1))
    outcome = through_ray(store, run, candidates=1, runs=5, silence_s=3.0, pruner=Halves())
    assert outcome.statuses == {"done": 1, "pruned": 1, "failed": 3}
    (pruned,) = (record for record in store.records() if record.status == "pruned")
    assert len(store.curve(pruned.key)) == 2
    reasons = {record.label: record.reason for record in store.records() if record.reason}
    crash = reasons.pop("n=2")
    assert crash.startswith("its process is lost with its machine: WorkerCrashedError")
    assert crash.endswith(", 1 times")
    assert reasons == {
        "n=3": "its process gave no sign of life for 3 s and was ended",
        "n=4": "kernel is -3; a convolution has at least 1 tap",
    }


@pytest.mark.slow
@needs_ray
def test_a_killed_search_goes_on_to_the_scores_of_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--space", small.space(tmp_path), *TINY, *ON_MLX, "--no-prune", "--seeds", "1"]
    through_ray = ["mad", "search", *words, "--study", "killed", "--executor", "ray"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxhog", *through_ray, "--parallel", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    studies, children = tmp_path / "studies", []
    try:
        wait_until(lambda: lines(studies / "killed") >= 1, 240.0)
        children = below(process.pid)
    finally:
        process.kill()
        process.wait()
        for pid in children:  # agents of Ray's own would try to reach their server for minutes
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, children)))
    assert 1 <= lines(studies / "killed") < 4
    for name in ("killed", "local"):
        assert main(["mad", "search", *words, "--study", name, "--parallel", "2"]) == 0
    assert lines(studies / "killed") == 4
    assert_same_studies(Store(studies / "killed"), Store(studies / "local"))


@needs_ray
def test_a_cluster_that_does_not_answer_is_named():
    with (
        pytest.raises(EnvironmentLacks, match=r"the Ray cluster localhost:1 cannot be joined"),
        ours.cluster(small.quick, parallel=1, threads=1, silence_s=1.0, address="localhost:1"),
    ):
        pass
