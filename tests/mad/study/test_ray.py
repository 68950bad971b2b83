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
def test_what_goes_wrong_fails_with_its_reason(tmp_path, through_ray):
    store = study(tmp_path, candidates=1)
    wrong = functools.partial(small.goes_wrong, wrong="crash hang swallow raise")
    go(store, candidates=1, runs=6, limit=Limit(runs=1))  # continues with Ray
    outcome = through_ray(store, wrong, candidates=1, runs=6, silence_s=3.0)
    assert outcome.statuses == {"done": 2, "failed": 4}
    reasons = {record.label: record.reason for record in store.records() if record.reason}
    crash = reasons.pop("n=1")
    assert crash.startswith("its process is lost with its machine: WorkerCrashedError")
    assert crash.endswith(", 4 times")
    assert reasons == {
        "n=2": "its process gave no sign of life for 3 s and was ended",
        "n=3": "needs more memory than there is: Unable to allocate 512. GiB for an array with "
        "shape (68719476736,) and data type float64",
        "n=4": "kernel is -3; a convolution has at least 1 tap",
    }


@pytest.mark.slow
@needs_ray
def test_a_rung_is_answered_and_points_arrive(tmp_path, through_ray):
    store = study(tmp_path, candidates=1)
    through_ray(store, small.with_curve, candidates=1, silence_s=60.0, pruner=Halves())
    assert [record.status for record in store.records()].count("pruned") == 1
    assert {len(store.curve(record.key)) for record in store.records()} == {2, 3}


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
    studies = tmp_path / "studies"
    try:
        wait_until(lambda: lines(studies / "killed") >= 1)
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


def test_without_ray_the_package_is_named(monkeypatch):
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacks, match="pip install ray; .*local") as error:
        ours.check()
    assert error.value.exit_code == 3


@needs_ray
def test_a_cluster_that_does_not_answer_is_named():
    with (
        pytest.raises(EnvironmentLacks, match=r"the Ray cluster localhost:1 cannot be joined"),
        ours.cluster(small.quick, parallel=1, threads=1, silence_s=1.0, address="localhost:1"),
    ):
        pass
