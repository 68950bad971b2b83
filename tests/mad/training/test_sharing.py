"""Candidates with a shared embedding: one table, and no other shared state."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mlxhog.cli import main
from mlxhog.errors import StudyError
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.run import Callbacks
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.session import execute
from mlxhog.mad.study.store import open_store
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.sharing import EMBEDDING, common, shared_tables
from mlxhog.models.layers import make
from tests.mad.study.small import texts
from tests.mad.training.small_runs import numbers, small_run


def table(run, config):
    """The present table of a run."""
    return run._arena.param(run.names[common(config)])


def go(run, config):
    return run(config, callbacks=Callbacks(), rungs=())


@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
@pytest.mark.parametrize("optimizer", ["adamw(weight_decay=0.1)", "muon(embedding_lr=3)"])
def test_a_candidate_that_has_the_table_to_itself_trains_as_with_its_own(backend, optimizer):
    config, params = small_run(workers=backend, clip=1.0, optimizer=optimizer), {}
    expected = train(config, on_end=lambda arena: params.update(own=arena.param(EMBEDDING).copy()))
    with shared_tables([config]) as run:
        assert numbers(go(run, config)) == numbers(expected)
        np.testing.assert_array_equal(table(run, config), params["own"])


def test_a_later_candidate_goes_on_with_the_table_and_begins_with_its_own_moments():
    first = small_run()
    second = replace(first, layers=(make("swiglu"),))
    with shared_tables([first]) as run:
        go(run, first)
        before = table(run, first).copy()
        result = go(run, second)
        assert not np.array_equal(table(run, second), before)

    def start_there(context):
        context.arena.param(EMBEDDING)[...] = before

    assert numbers(train(second, prepare=start_there)) == numbers(result)


def test_a_resumed_study_begins_with_the_tables_as_its_runs_left_them(tmp_path):
    study = StudyDefinition(
        candidates=tuple(texts(2)), tasks=("in-context-recall",), dim=16, workers="mlx:cpu",
        recipe={"steps": 2, "batch_size": 8}, share_embedding=True,
    )  # fmt: skip
    store, left = open_store(study, tmp_path, "s"), []
    for n in (1, 2):
        how = ExecutionConfig(parallel=1, budget=str(n))
        ended = execute(store, study, how, print)
        assert ended.statuses == {"done": n * study.runs_each}
        left.append(store.tables())
    with shared_tables(study.runs(study.first), left[0]) as run:
        for config in study.runs(texts(2)[1]):  # those of the second session
            go(run, config)
        run.write(lambda tables: np.testing.assert_equal(tables, left[1]))
    (store.directory / "tables.safetensors").unlink()
    with pytest.raises(StudyError, match="shared embedding that is lost"):
        store.tables()


@pytest.mark.slow
def test_two_processes_of_a_search_add_to_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "mad search --tasks CR --steps 2 --share-embedding --no-prune --json --parallel 2"
    assert main([*words.split(), "--budget", "2", "--study", "together"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "share_embedding: true" in (tmp_path / "studies/together/study.yaml").read_text()
