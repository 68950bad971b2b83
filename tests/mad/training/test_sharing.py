"""Candidates with a shared embedding: one table, and no other shared state."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from mlxhog.config.plugins import Plugin
from mlxhog.errors import ConfigError
from mlxhog.mad.run import Callbacks
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.sharing import EMBEDDING, SharedEmbedding, SharedRun, common, shared_tables
from mlxhog.models.families import init_params
from mlxhog.models.mad.layers import make
from tests.forked import CONTEXT
from tests.mad.training.small_runs import numbers, small_run

BACKENDS = ("torch:cpu", "mlx:cpu")


def table(run, config):
    """The present table of a run."""
    return run._arena.param(run.names[common(config)])


def go(run, config):
    return run(config, callbacks=Callbacks(), rungs=())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("task", "optimizer"),
    [
        ("in-context-recall", "adamw(weight_decay=0.1)"),
        ("memorization", "adamw(weight_decay=0.1)"),
        ("in-context-recall", "muon(embedding_lr=3)"),
    ],
)
def test_a_candidate_that_has_the_table_to_itself_trains_as_with_its_own(backend, task, optimizer):
    settings = {"vocab": 24} if task == "memorization" else {}
    config = small_run(workers=backend, task=task, settings=settings, clip=1.0, optimizer=optimizer)
    params = {}
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


def test_two_candidates_in_the_same_step_see_each_others_rows():
    config = small_run(steps=1, eval_every=1)
    other = replace(config, layers=(make("swiglu"),))
    with shared_tables([config]) as run:
        go(run, replace(config, protocol=config.protocol))  # attaches
        shared, name = run._arena, run.names[common(config)]
        rows = []
        inner = []

        def beside(context):
            """Before the first candidate's step, another one makes a whole run."""
            context.optimizer = SharedEmbedding(context, shared, name)
            own = context.optimizer.step

            def step(target, grads, **how):
                inner.append(go(run, other))
                rows.append(table(run, config).copy())
                own(target, grads, **how)

            context.optimizer.step = step

        train(config, prepare=beside)
        after = table(run, config)
        assert len(inner) == 1
        assert not np.array_equal(after, rows[0])
        # Both steps are in the table: the second was added after the first.
        start = init_params_of(config)
        moved_by_first, moved_by_second = rows[0] - start, after - rows[0]
        assert np.abs(moved_by_first).max() > 1e-4
        assert np.abs(moved_by_second).max() > 1e-4


def init_params_of(config):
    from mlxhog.mad.training.run_plan import make_run_plan

    return init_params(make_run_plan(config).model, config.seed)[EMBEDDING]


def test_every_setting_seed_and_point_has_a_table_of_its_own():
    base = small_run()
    configs = [
        base,
        replace(base, seed=4),
        replace(base, protocol=replace(base.protocol, lr=1e-3)),
        small_run(settings={"vocab": 10}),
    ]
    with shared_tables(configs) as run:
        go(run, base)
        tables = [table(run, config) for config in configs]
        assert [one.shape for one in tables] == [(8, 16), (8, 16), (8, 16), (10, 16)]
        for config, one in zip(configs[1:], tables[1:], strict=True):
            np.testing.assert_array_equal(one, init_params_of(config))


def execute(run, config, queue):
    queue.put(go(run, config).status)


def test_candidates_with_a_layer_of_the_users_share_with_those_without():
    own = replace(small_run(), plugins=(Plugin("/home/my_layer.py", "0123"),))
    assert common(own) == common(small_run())


@pytest.mark.slow
def test_other_processes_add_to_the_same_table():
    config = small_run(steps=40, eval_every=40, workers="mlx:cpu")
    other = replace(config, layers=(make("swiglu"),))
    with shared_tables([config]) as run:
        go(run, config)
        before = table(run, config).copy()
        queue = CONTEXT.Queue()
        children = [
            CONTEXT.Process(target=execute, args=(SharedRun(run.handle, run.names), one, queue))
            for one in (config, other)
        ]
        for child in children:
            child.start()
        assert [queue.get(timeout=120) for _ in children] == ["done", "done"]
        for child in children:
            child.join(30)
        assert np.isfinite(table(run, config)).all()
        assert not np.array_equal(table(run, config), before)
    assert multiprocessing.active_children() == []


def test_candidates_whose_moments_have_other_shapes_do_not_share():
    with (
        pytest.raises(ConfigError, match="soap has others; use --optimizer muon or adamw"),
        shared_tables([small_run(optimizer="soap")]),
    ):
        pass
