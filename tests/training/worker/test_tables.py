"""Runs with tables of n-grams, and with the options of group sparse."""

import numpy as np
import pytest

from mlxhog import train
from mlxhog.errors import CheckpointError
from mlxhog.optim.tables import NORM
from mlxhog.training.plan.decide import make_plan
from tests.training.small import checkpoint_of, filled, parameters, small_config

SET = "ngram_orders=2-4, ngram_dim=8, ngram_rows=1024"


def with_tables(tmp_path, **options):
    return small_config(tmp_path, **{"set": SET, **options})


def touched(result):
    """Names of the tables in which rows have moved."""
    return {name for name, value in parameters(result).items() if "table" in name and value.any()}


@pytest.mark.slow
def test_tables_learn_what_the_last_ids_say(tmp_path):
    options = {"steps": 60, "eval_every": "1h"}
    plain = train(small_config(tmp_path, **options))
    result = train(with_tables(tmp_path, **options))
    assert touched(result) == {"ngrams.table_2", "ngrams.table_3", "ngrams.table_4"}
    assert all(checkpoint_of(result).optimizer[f"{NORM}.1/{name}"] > 0 for name in touched(result))
    assert result.val_bits_per_byte < plain.val_bits_per_byte - 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"async_after": 0.5},
        {"strategy": "sync", "backup_workers": 1},
        {"strategy": "aig"},
        {"strategy": "fedprox", "prox": "decoupled", "average_every": 4},
        {"overlap": True, "write": "cas"},
        {"delay_compensation": "adaptive:1"},
        {"delay_feedback": True},
        {"strategy": "serial", "grad_accumulation": 2, "sampled_softmax": 40},
        {"strategy": "serial", "optimizer": "sgd", "lr": 0.1, "dtype": "bfloat16"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_strategies_and_optimizers_carry_tables(tmp_path, options):
    workers = "mlx:cpu" if options.get("strategy") == "serial" else "mlx:cpu,torch:cpu"
    result = train(with_tables(tmp_path, **{"workers": workers, **options}))
    assert (result.status, len(touched(result))) == ("done", 3)


@pytest.mark.slow
def test_a_checkpoint_without_tables_gets_none_and_one_with_tables_keeps_them(tmp_path):
    plain, result = train(small_config(tmp_path, steps=2)), train(with_tables(tmp_path, steps=5))
    begun = {"model": "auto", "tokenizer": "auto"}
    for options, there in (
        ({"resume": plain.run, "set": SET}, "None"),
        ({**begun, "init_from": plain.run, "set": SET}, "None"),
        ({"resume": result.run}, r"\[2, 3, 4\]"),
    ):
        with pytest.raises(CheckpointError, match=f"ngram_orders is {there} there and"):
            make_plan(small_config(tmp_path, steps=2, **options))
    begun["init_from"], saved = result.run, parameters(result)
    with filled(small_config(tmp_path, **begun)) as (_, arena, _):
        assert all(np.array_equal(arena.param(name), value) for name, value in saved.items())
    resized = {**begun, "tokenizer": "bpe:300", "resize_vocab": True}
    with filled(small_config(tmp_path, **resized)) as (_, arena, _):
        assert arena.layout.tables
        assert not any(arena.param(name).any() for name in arena.layout.tables)


TWO = "mlx:cpu*2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "sign"),
    [("residual", {"sparsify": "topk:0.02"}, 1), ("feedback", {"delay_feedback": True}, -1)],
)
def test_pending_updates_are_kept_for_other_workers_and_settled_without_the_option(
    tmp_path, kind, options, sign
):
    """Those of a residual are not written yet; those of the feedback were written in advance."""
    waiting = {}
    while not any(value.any() for value in waiting.values()):  # one worker alone has none
        first = train(small_config(tmp_path, workers=TWO, **options))
        saved = checkpoint_of(first)
        waiting = {
            name: sum(saved.optimizer[f"{kind}.{slot}/{name}"] for slot in (1, 2))
            for name in saved.params
        }

    def check(expected, **changes):
        with filled(small_config(tmp_path, resume=first.run, **changes)) as (_, arena, _):
            for name in arena.layout.slots:
                expected(arena, name)

    def is_kept(arena, name):
        now = sum(arena.views(f"{kind}.{slot}")[name] for slot in (1, 2, 3))
        np.testing.assert_allclose(now, waiting[name], rtol=1e-5, atol=1e-9)

    def is_settled(arena, name):
        value = saved.params[name] + sign * waiting[name]
        np.testing.assert_allclose(arena.param(name), value, rtol=1e-5, atol=1e-7)

    check(is_kept, workers="mlx:cpu*3", **options)
    check(is_settled, workers=TWO)
    check(is_settled, workers=TWO, strategy="local_sgd")
    check(is_settled, workers=TWO, reset_optimizer=True, **options)


@pytest.mark.slow
def test_a_sampled_softmax_has_a_lock_per_row_and_evaluation_is_over_the_vocabulary(tmp_path):
    options = {"eval_every": "1h", "steps": 50, "seed": 3}
    config = small_config(tmp_path, sampled_softmax=60, **options)
    head = make_plan(config).layout.slots["lm_head.weight"]
    assert head.kind == "rows"
    assert head.row_word0 is not None
    sampled, full = train(config), train(small_config(tmp_path, **options))
    assert abs(sampled.val_bits_per_byte / full.val_bits_per_byte - 1) < 0.1
