"""The other executor: the same runs, the same store, the same reasons."""

import importlib.util
import os
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
from tests.mad.study.test_scheduler import ROOT, lines, wait_for
from tests.processes import alive, below

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
            with ours.cluster(
                run, parallel=2, threads=1, logs=store.directory / "logs", silence_s=silence_s
            ) as executor:  # fmt: skip
                return go(store, executor=executor, **how)

    resource_tracker.ensure_running()  # it stays, for the other tests
    before = set(below(os.getpid()))
    yield session
    assert not [pid for pid in below(os.getpid()) if pid not in before and alive(pid)]


@pytest.mark.slow
@needs_ray
def test_what_goes_wrong_fails_for_the_same_reasons_as_on_local(tmp_path, through_ray):
    store = study(tmp_path, candidates=1)
    wrong = {"wrong": "crash hang swallow"}
    go(store, candidates=1, runs=6, settings=wrong, limit=Limit(runs=1))  # continues with Ray
    outcome = through_ray(
        store, small.goes_wrong, candidates=1, runs=6, settings=wrong, silence_s=3.0
    )
    assert outcome.statuses == {"done": 3, "failed": 3}
    reasons = {record.label: record.reason for record in store.records() if record.reason}
    assert reasons == {
        "n=1": "its process crashed (SIGSEGV): Fatal Python error: Segmentation fault",
        "n=2": "its process gave no sign of life for 3 s and was ended",
        "n=3": "needs more memory than there is: Unable to allocate 512. GiB for an array with "
        "shape (68719476736,) and data type float64",
    }


@pytest.mark.slow
@needs_ray
def test_nothing_of_ray_outlives_a_killed_search_which_goes_on_to_the_scores_of_local(
    tmp_path, monkeypatch
):
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
        wait_for(lambda: lines(studies / "killed") >= 1)
        children = below(process.pid)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(map(alive, children)), timeout_s=240)  # 40 s on a busy machine
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
def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    with (
        pytest.raises(EnvironmentLacks, match=r"the Ray cluster localhost:1 cannot be joined"),
        ours.cluster(
            small.quick, parallel=1, threads=1, logs=tmp_path, silence_s=1.0, address="localhost:1"
        ),
    ):
        pass
