"""The other executor: the same runs, the same store, the same reasons."""

import importlib.util
import os
import warnings
from multiprocessing import resource_tracker

import pytest

from mlxhog.errors import EnvironmentLacks, WorkerFailed
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.study import ray as ours
from mlxhog.mad.study import scheduler
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.session import execute
from mlxhog.mad.study.store import open_store
from mlxhog.mad.training.candidate import train
from tests.mad.study import small
from tests.mad.study.test_scheduler import Second
from tests.processes import below, left_of
from tests.threads import LIMIT_S

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"
)


@pytest.fixture(autouse=True)
def _search_path(monkeypatch):
    """The search path of modules; a study with Ray changes it, and other tests need the old one."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")


def trains_or_crashes(config, **how):
    """Seed 2 crashes."""
    return train(config, **how) if config.seed < 2 else small.WRONG["crash"]()


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("spawned_workers")
def test_a_local_study_continues_on_ray_with_the_same_scores_rungs_and_reasons(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(scheduler, "MAX_RETRIES", 0)
    monkeypatch.setattr("mlxhog.mad.study.session.Scheduler", small.CutScheduler)
    monkeypatch.setattr(StudyDefinition, "new_pruner", lambda study, curve: Second())
    study = StudyDefinition(
        candidates=("gated-conv",), tasks=("in-context-recall",), dim=16, seeds=(0, 1, 2),
        recipe={"steps": 4, "eval_every": 2, "batch_size": 8}, workers="mlx:cpu",
    )  # fmt: skip
    local, ray = (open_store(study, tmp_path, name) for name in ("local", "ray"))

    def session(store, n_runs=None, **how):
        monkeypatch.setattr(small.CutScheduler, "n_runs", n_runs)
        how = ExecutionConfig(parallel=2, **how)
        return execute(store, study, how, print, run=trains_or_crashes)

    session(local, 2)
    session(ray, 1)
    resource_tracker.ensure_running()  # it stays, for the other tests
    before = set(below(os.getpid()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray; newer versions have more
        outcome = session(ray, executor="ray")
    assert not left_of(set(below(os.getpid())) - before, LIMIT_S)
    assert outcome.statuses == {"done": 1, "pruned": 1, "failed": 1}
    by_seed = {one.seed: one for one in ray.records()}
    assert by_seed[2].reason.startswith("its process is lost with its machine: WorkerCrashedError")
    for one in local.records():
        assert by_seed[one.seed].acc_macro == one.acc_macro
        curves = [store.curve(one.key) for store in (local, ray)]
        assert [point.loss for point in curves[0]] == [point.loss for point in curves[1]]


@needs_ray
def test_a_cluster_that_does_not_answer_is_named():
    with (
        pytest.raises(EnvironmentLacks, match=r"the Ray cluster localhost:1 cannot be joined"),
        ours.cluster(small.quick, parallel=1, threads=1, cores=1, address="localhost:1"),
    ):
        pass


@pytest.mark.slow
@needs_ray
def test_a_lost_mailbox_ends_a_session_in_words(tmp_path):
    import ray

    resource_tracker.ensure_running()  # it stays, for the other tests
    before = set(below(os.getpid()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray
        with ours.cluster(small.quick, parallel=1, threads=1, cores=1) as executor:
            ray.kill(executor._mailbox)
            executor.start(small.config(), ())
            with pytest.raises(WorkerFailed, match="mad resume continues the study"):
                [*executor.ended(LIMIT_S, lambda config, point: False)]
    assert not left_of(set(below(os.getpid())) - before, LIMIT_S)


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("spawned_workers")
def test_language_models_on_ray_have_the_numbers_of_the_pool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Lock free adds never wait. " * 400)
    study = StudyDefinition(
        candidates=("gated-conv swiglu", "swiglu"), suite="lm:2ktok", dim=16, data="text.txt"
    )
    stores = [open_store(study, tmp_path, name) for name in ("local", "ray")]
    resource_tracker.ensure_running()  # it stays, for the other tests
    before = set(below(os.getpid()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray; newer versions have more
        for store in stores:
            how = ExecutionConfig(parallel=2, executor=store.name)
            assert execute(store, study, how).statuses == {"done": 2}
    assert not left_of(set(below(os.getpid())) - before, LIMIT_S)
    bits = [
        {row.candidate: row.measures["val_bits_per_byte"] for row in study.rows(store.records())}
        for store in stores
    ]
    assert bits[0] == bits[1]
