"""Counting modulo two, in short: a stack with memory mixing learns it, one without does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlxhog.data.batch import IGNORED

SHORT = (3, 10)
UNSEEN = (16, 24, 40)


@pytest.fixture(scope="module")
def task(load: Any) -> Any:
    return load("formal_languages")


def test_the_answer_to_every_string_is_the_parity_of_its_own_characters(task: Any) -> None:
    batch = task.parity(np.random.default_rng(0), 500, (3, 9))
    assert batch.x.shape == batch.y.shape == (500, 8)
    assert set(np.unique(batch.x)) == {0, 1, 2}
    sizes = set()
    for x, y in zip(batch.x, batch.y, strict=True):
        (last,) = np.flatnonzero(y != IGNORED)
        assert y[last] == 1 + np.count_nonzero(x[: last + 1] == 2) % 2
        assert (x[: last + 1] > 0).all()
        assert (x[last + 1 :] == 0).all()
        sizes.add(int(last) + 2)
    assert sizes == set(range(3, 10))


def test_a_batch_is_as_long_as_its_longest_string_and_repeats_with_its_seed(task: Any) -> None:
    one, same, other = (task.parity(np.random.default_rng(s), 4, (3, 40)) for s in (1, 1, 2))
    assert np.array_equal(one.x, same.x)
    assert np.array_equal(one.y, same.y)
    assert not np.array_equal(one.y, other.y)
    assert (one.y[:, -1] != IGNORED).any()


def test_the_official_stacks_have_two_blocks_of_one_head_and_width_64(task: Any) -> None:
    for slstm_at in task.STACKS.values():
        cfg = task.stack(slstm_at)
        assert (cfg.vocab_size, cfg.hidden_size, cfg.num_hidden_layers) == (3, 64, 2)
        assert cfg.slstm_at == slstm_at


@pytest.mark.slow
def test_an_slstm_learns_parity_of_short_strings_and_knows_that_of_longer_ones(task: Any) -> None:
    assert unseen_accuracy(task, "[sLSTM, sLSTM]", 200) > 0.95


@pytest.mark.slow
def test_an_mlstm_stack_learns_short_strings_and_nothing_of_longer_ones(task: Any) -> None:
    assert unseen_accuracy(task, "[mLSTM, mLSTM]", 200) < 0.7


def unseen_accuracy(task: Any, name: str, steps: int) -> float:
    """Mean accuracy on longer strings than the ones that were trained on; chance is 0.5."""
    recipe = task.Recipe(batch=64, lr=1e-2, warmup=50, steps=steps)
    learner = task.Learner(task.stack(task.STACKS[name], d=32), recipe, backend="torch:cpu")
    for _ in range(steps):
        learner.step(SHORT)
    return float(np.mean([learner.accuracy(size) for size in UNSEEN]))
