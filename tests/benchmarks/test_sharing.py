"""Candidates with a shared embedding: one table, and no other shared state."""

from dataclasses import replace

import pytest

from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.config import EMBEDDING
from mlxhog.models.mad.layers import make
from tests.mad.training.small_runs import numbers, small_run


def test_candidates_share_a_table_and_begin_with_their_own_moments(load):
    sharing = load("mad.sharing")
    first = small_run(workers="mlx:cpu", clip=1.0)
    second, own = replace(first, layers=(make("swiglu"),)), {}
    alone = train(first, on_end=lambda arena: own.update(table=arena.param(EMBEDDING).copy()))
    with sharing.shared_tables([first]) as run:
        assert numbers(run(first)) == numbers(alone)
        result = run(second)

    def start_there(context):
        context.arena.param(EMBEDDING)[...] = own["table"]

    assert numbers(train(second, prepare=start_there)) == numbers(result)
    assert numbers(train(second)) != pytest.approx(numbers(result))
