"""The other executor: the same runs, the same store, the same reasons."""

import importlib.util
import os
import subprocess
import sys
import warnings

import pytest

from mlxhog.errors import EnvironmentLacks
from mlxhog.mad.options import Limit
from mlxhog.mad.study import ray as ours
from tests.mad.study import small
from tests.mad.study.small import go, study, table
from tests.mad.study.test_scheduler import ROOT, lines, wait_for
from tests.processes import alive, below

pytestmark = pytest.mark.slow

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install mlxhog[ray]"
)


@pytest.fixture
def through_ray():
    """Runs a session of a study through Ray, which is started for it."""

    def session(store, run=small.quick, *, silence_s=small.SILENCE_S, memory_limit=None, **how):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, of which newer versions have more
            with ours.cluster(
                run, parallel=2, threads=1, logs=store.directory / "logs", silence_s=silence_s,
                memory_limit=memory_limit,
            ) as executor:  # fmt: skip
                return go(store, executor=executor, **how)

    before = set(below(os.getpid()))
    yield session
    assert not [pid for pid in below(os.getpid()) if pid not in before and alive(pid)]


@needs_ray
def test_ray_and_local_find_the_same_and_a_study_goes_on_from_one_to_the_other(
    tmp_path, through_ray
):
    local = study(tmp_path, "local")
    go(local, small.with_curve, parallel=2)
    both = study(tmp_path, "both")
    go(both, small.with_curve, limit=Limit(runs=3))
    through_ray(both, small.with_curve, limit=Limit(runs=6))
    assert len(both.records()) == 6
    go(both, small.with_curve)
    assert table(both) == table(local)
    for record in both.records():
        assert [point.step for point in both.curve(record.key)] == [1, 2, 3]


@needs_ray
def test_what_goes_wrong_fails_for_the_same_reasons_as_on_local(tmp_path, through_ray):
    store = study(tmp_path, candidates=1)
    wrong = {"wrong": "crash hang swallow"}
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


SESSION = """
import sys
from pathlib import Path
from mlxhog.mad.study.ray import cluster
from tests.mad.study import small
if __name__ == "__main__":
    store = small.study(Path(sys.argv[1]), "s", candidates=5)
    with cluster(small.slow, parallel=2, threads=1, logs=store.directory / "logs",
                 silence_s=60) as executor:
        small.go(store, executor=executor, candidates=5)
"""


@needs_ray
def test_nothing_of_ray_outlives_a_killed_scheduler_and_the_study_goes_on(tmp_path):
    script = tmp_path / "session.py"
    script.write_text(SESSION)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: lines(tmp_path / "s") >= 3)
        children = below(process.pid)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(map(alive, children)))
    store = study(tmp_path, "s")
    assert 3 <= len(store.records()) < 20
    assert go(store, candidates=5).statuses == {"done": 20}


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacks, match=r"pip install 'mlxhog\[ray\]'.*local") as error:
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
