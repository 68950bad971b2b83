"""What a gradient keeps is counted from the layers, and the count is near the measurements."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxhog import arena, backends
from mlxhog.data.batch import Batch
from mlxhog.models import families
from mlxhog.models.activations import KEPT, Activations, activations
from mlxhog.models.ops.kernels import ENGINES, MODULES
from mlxhog.models.registry import load_architecture

RECORD = Path(__file__).parents[2] / "benchmarks/results/memory.json"
MLX = ("mlx", "eager")


def bytes_of(model, length, variant=MLX, **how):
    return activations(model, *variant, length=length, **how).of(length)


def test_every_kernel_variant_has_its_numbers():
    assert KEPT.keys() == MODULES.keys() | ENGINES.keys()


def test_the_plan_is_within_15_percent_of_the_recorded_peaks_of_eager_mlx():
    rows = json.loads(RECORD.read_text())["table"]
    own = [row for row in rows if (row["backend"], row["kernels"]) == ("mlx:cpu", "eager")]
    own = [row for row in own if row["recompute"] == "none"]
    for row in own:
        model = load_architecture(row["model"], row["changes"] or None)
        for length, peak in zip(row["lengths"], row["bytes"], strict=True):
            plan = activations(model, *MLX, length=length, dtype=row["dtype"]).peak(length)
            assert plan == pytest.approx(peak, rel=0.15), (row["model"], length)
    assert len(own) == 10  # the large model in both types


def test_the_plan_is_within_15_percent_of_a_peak_that_is_measured_now():
    model, S = load_architecture("tiny"), 192
    backend = backends.create("mlx:cpu", threads=1, kernels="eager")
    backend.bind(model, arena.plan(families.param_spec(model), max_workers=1, n_tickets=1))
    backend.param_buffer[:] = 0.01
    tokens = np.zeros((1, S), np.int32)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    backend.loss_and_grads(Batch(tokens, tokens, n_bytes=0))
    assert bytes_of(model, S) == pytest.approx(mx.get_peak_memory() - before, rel=0.15)


def test_recomputed_blocks_keep_their_inputs_and_one_block_a_part_of_its_all():
    model, one = load_architecture("30m"), load_architecture("30m", "num_hidden_layers=1")
    whole, blocks = (
        activations(model, *MLX, length=64, recompute=how) for how in ("none", "blocks")
    )
    assert blocks.token_bytes == 4 * model.num_hidden_layers * model.hidden_size
    block = activations(one, *MLX, length=64).token_bytes
    assert blocks.block_bytes == pytest.approx(blocks.token_bytes + KEPT[MLX].block * block)
    assert blocks.of(64) < whole.of(64) / 4


def test_an_embedding_has_no_gradient_of_its_own_and_a_sampled_head_that_of_its_candidates():
    model = load_architecture("30m")
    row, heads = 4 * model.hidden_size, 1 + KEPT[MLX].heads
    others = 4 * families.param_count(model) - 2 * row * model.vocab_size
    how = ({}, model.vocab_size), ({"candidates": 16}, 16)
    for options, rows in how:
        plan = activations(model, *MLX, length=64, **options)
        assert plan.gradient_bytes == pytest.approx(others + heads * rows * row)


def test_a_long_attention_and_a_large_vocabulary_cost_what_exists_at_once():
    attention = load_architecture("mh-attention", "hidden_size=64,vocab_size=320")
    by_length = [activations(attention, *MLX, length=S).token_bytes for S in (1000, 2000)]
    assert by_length[1] > 1.9 * by_length[0]
    model = load_architecture("tiny", "vocab_size=50304")
    whole = [activations(model, *MLX, length=S) for S in (10_000, 20_000)]
    assert whole[0] == whole[1]
    assert whole[1].of(20_000) - whole[0].of(10_000) == pytest.approx(1e4 * whole[0].token_bytes)
    sampled = activations(model, *MLX, length=64, candidates=503)
    assert sampled.logit_bytes == pytest.approx(whole[0].logit_bytes / 100, rel=0.01)


def test_the_most_tokens_are_the_most_whose_bytes_fit():
    for kept in (Activations(3.0, 5.0, 40, 2.0), Activations(3.0, 5.0, 40, 2.0, 60.0, 50, 4.0)):
        for n_bytes in range(2, 1000, 7):
            fitting = [tokens for tokens in range(400) if kept.peak(tokens) <= n_bytes]
            assert kept.max_tokens(n_bytes) == max(fitting, default=0)
