"""Runs with the options of group sparse: equal to dense where they must be, killed, resumed."""

from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.checkpoint import checkpoint
from mlxhog.errors import ConfigError
from mlxhog.training.plan import make_plan
from mlxhog.training.state import load
from tests.training.small import identical, parameters, small_config

TWO = "mlx:cpu*2"
SPARSE = {
    "topk": {"sparsify": "topk:0.02"},
    "threshold": {"sparsify": "threshold:2", "error_feedback": "false"},
    "sampled head": {"sampled_head": 40},
    "disjoint": {"blocks": "disjoint", "rotate_every": 3},
    "all of them": {
        "sparsify": "topk:0.05", "sampled_head": 40, "blocks": "disjoint", "rotate_every": 3
    },
}  # fmt: skip


def saved(result):
    return checkpoint.load(Path(str(result.checkpoint)))


@pytest.fixture(scope="module")
def two_topk(tmp_path_factory):
    """A folder, and a run in it of two workers that keep residuals."""
    folder = tmp_path_factory.mktemp("topk")
    return folder, train(small_config(folder, workers=TWO, **SPARSE["topk"]))


@pytest.mark.slow
def test_one_worker_that_writes_everything_is_dense_training_bit_for_bit(tmp_path):
    dense = parameters(train(small_config(tmp_path)))
    for sparse in ({"sparsify": "topk:1"}, {"sparsify": "threshold:1e-30"}, {"blocks": "disjoint"}):
        assert identical(dense, parameters(train(small_config(tmp_path, **sparse)))), sparse


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threshold", "all of them"])
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, kind):
    common = {**SPARSE[kind], "schedule": "constant", "warmup": 0}
    whole = train(small_config(tmp_path, steps=16, **common))
    first = train(small_config(tmp_path, steps=8, **common))
    second = train(small_config(tmp_path, steps=8, resume=first.run, **common))
    assert identical(parameters(whole), parameters(second))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_other_workers_take_over_all_that_was_not_written_yet(two_topk, workers):
    folder, first = two_topk
    loaded = saved(first).optimizer
    config = small_config(folder, workers=f"mlx:cpu*{workers}", resume=first.run, **SPARSE["topk"])
    planned = make_plan(config)
    with Arena.create(planned.layout) as arena:
        load(planned, arena, Ledger(arena))
        for name, slot in arena.layout.slots.items():
            span = slice(slot.offset, slot.offset + slot.size)
            now = sum(arena.segment(f"residual.{k + 1}")[span] for k in range(workers))
            before = sum(loaded[f"residual.{k}/{name}"].ravel() for k in (1, 2))
            np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"strategy": "local_sgd"}, {"reset_optimizer": True, **SPARSE["topk"]}],
    ids=["dense", "copies", "reset"],
)
def test_a_run_resumed_without_residuals_writes_the_waiting_updates(two_topk, options):
    folder, first = two_topk
    loaded = saved(first)
    planned = make_plan(small_config(folder, workers=TWO, resume=first.run, **options))
    with Arena.create(planned.layout) as arena:
        load(planned, arena, Ledger(arena))
        for copy in planned.strategy.kept_segments():
            n = arena.layout.probe.offset
            assert np.array_equal(arena.segment(copy)[:n], arena.params[:n])
        for name, value in loaded.params.items():
            waiting = (
                loaded.optimizer[f"residual.1/{name}"] + loaded.optimizer[f"residual.2/{name}"]
            )
            np.testing.assert_allclose(arena.param(name), value + waiting, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_sampled_head_has_a_lock_per_row_and_evaluation_takes_every_word(tmp_path):
    options = {"eval_every": "1h", "steps": 50, "seed": 3}
    config = small_config(tmp_path, sampled_head=60, **options)
    planned = make_plan(config)
    head = planned.layout.slots["lm_head.weight"]
    assert head.kind == "rows"
    assert head.row_word0 is not None
    sampled, full = train(config), train(small_config(tmp_path, **options))
    assert sampled.val_bits_per_byte is not None
    assert full.val_bits_per_byte is not None
    assert abs(sampled.val_bits_per_byte / full.val_bits_per_byte - 1) < 0.1


@pytest.mark.parametrize(
    ("model", "options", "what"),
    [
        ("tie_word_embeddings: true", {"sampled_head": 40}, "tied to the embedding; untie"),
        ("", {"sampled_head": 320}, "vocab_size 320; draw fewer"),
        ("", {"blocks": "disjoint", "workers": "mlx:cpu*3"}, "take at most 2 workers"),
    ],
)
def test_options_that_the_model_cannot_use_are_refused_with_the_way_out(
    tmp_path, model, options, what
):
    path = tmp_path / "other.yaml"
    path.write_text(Path(small_config(tmp_path).model).read_text() + model)
    with pytest.raises(ConfigError, match=what):
        make_plan(small_config(tmp_path, **{**options, "model": str(path)}))
