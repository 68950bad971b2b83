"""Supports of real gradients: what a backend computes is what the theory is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.arena.child import Lane
from mlxhog.config.sources import of_keywords
from mlxhog.experiments.target import find_target
from mlxhog.research import AnalyzeConfig
from mlxhog.research.analysis.analyze import plan_of, subject_of
from mlxhog.research.analysis.sampling import DELAYS, compare_stale_gradients, sample
from mlxhog.training.supervisor.training import train
from tests.training.small import MIXED_MODEL, small_config

BACKENDS = ("torch:cpu", "mlx:cpu")
TICKETS = [(0, 0), (0, 3), (1, 5)]


def subject(tmp_path, *, architecture=None, backend="mlx:cpu", **options):
    """Gradients of a small model on a text of five words, at its initial values."""
    config = small_config(tmp_path)
    spec = config.model
    if architecture is not None:
        spec = str(tmp_path / "architecture.yaml")
        Path(spec).write_text(architecture)
    options = {"data": config.data, "seq_len": 32, "batch_size": 2, **options}
    target = find_target(spec, of_keywords("test", options), tmp_path / "runs")
    return subject_of(target, plan_of(target, AnalyzeConfig(backend=backend)))


def touched(sampling, small, block):
    """Which elements of a block each update touches, (gradients, elements)."""
    number = [one.name for one in small.blocks].index(block)
    count = small.blocks[number].parameters
    bits = np.unpackbits(sampling.bits[number], axis=1, bitorder="little", count=count)
    return bits.astype(bool)


def touched_rows(sampling, small, block):
    """Which rows of a block of one matrix, (gradients, rows)."""
    (slot,) = next(one.slots for one in small.blocks if one.name == block)
    elements = touched(sampling, small, block)
    return elements.reshape(len(elements), slot.shape[0], -1).any(axis=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", [None, MIXED_MODEL], ids=["xlstm", "xlstm_v1"])
def test_an_update_touches_the_rows_of_its_tokens_and_nearly_all_of_dense_blocks(
    tmp_path, backend, architecture
):
    small = subject(tmp_path, architecture=architecture, backend=backend)
    sampling = sample(Lane(None, 0), small, TICKETS)
    rows = touched_rows(sampling, small, "embedding")
    for number, ticket in enumerate(TICKETS):
        tokens = small.plan.batches().at(*ticket).x
        assert np.flatnonzero(rows[number]).tolist() == np.unique(tokens).tolist()
    for block in small.blocks[1:]:
        assert touched(sampling, small, block.name).mean() > 0.95


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_beyond_the_sequence_and_experts_not_taken_are_never_touched(tmp_path, backend):
    layer = "{type: moe-swiglu, experts: 8, active: 1, inner: 4}"
    architecture = f"{{dim: 16, position: learned, max_length: 48, layers: [{layer}]}}"
    small = subject(tmp_path, architecture=architecture, backend=backend, batch_size=1)
    sampling = sample(Lane(None, 0), small, TICKETS)
    (positions,) = [one.name for one in small.blocks if "position" in one.name]
    rows = touched_rows(sampling, small, positions)
    assert rows[:, :32].all()
    assert not rows[:, 32:].any()  # the table has 48 rows, sequences 32 tokens
    every = [(block, slot) for block in small.blocks for slot in block.slots]
    ((block, slot),) = [pair for pair in every if pair[1].name.endswith(".w1.weight")]
    before = sum(one.size for one in block.slots[: block.slots.index(slot)])
    units = touched(sampling, small, block.name)[:, before : before + slot.size]
    experts = units.reshape(len(TICKETS), 8, -1).any(2)
    assert experts.any(1).all()
    assert not experts.all()  # tokens of so short a text do not take every expert


@pytest.mark.slow
def test_a_checkpoints_gradients_are_taken_at_its_own_parameters(tmp_path):
    result = train(small_config(tmp_path, steps=60, lr=1e-2))
    assert result.checkpoint is not None
    small = subject(tmp_path)
    fresh = sample(Lane(None, 0), small, TICKETS)
    saved = replace(small, checkpoint=Path(result.checkpoint))
    trained = sample(Lane(None, 0), saved, TICKETS)
    assert (trained.losses < fresh.losses - 1).all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon(moments=shared, embedding_lr=2.0)"])
def test_gradients_get_stale_by_the_updates_of_others_which_leave_the_parameters_as_they_were(
    tmp_path, optimizer
):
    others, cosines = [(0, k) for k in range(DELAYS[-1])], []
    for lr in (1e-7, 1e-2):
        small, lane = subject(tmp_path, optimizer=optimizer, lr=lr), Lane(None, 0)
        before = sample(lane, small, TICKETS)
        ages = compare_stale_gradients(lane, small, TICKETS[:1], others, others[:2])
        assert [one.delay for one in ages] == list(DELAYS)
        cosines.append([one.cosine for one in ages])
        after = sample(lane, small, TICKETS)
        assert (before.losses == after.losses).all()
        assert (before.norms == after.norms).all()
    still, moved = cosines
    assert min(still) > 0.999 > max(moved)


def test_updates_of_others_have_the_second_moment_of_its_half_life_in_tokens(tmp_path):
    others, cosines = [(0, k) for k in range(DELAYS[-1])], []
    for own in ("beta2_half_life=64", "beta2=0.5"):  # a step has 2 sequences of 32 tokens
        small = subject(tmp_path, optimizer=f"adamw({own})", lr=1e-2)
        cosines.append(compare_stale_gradients(Lane(None, 0), small, TICKETS[:1], others, ()))
    assert cosines[0] == cosines[1]
