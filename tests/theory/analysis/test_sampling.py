"""Supports of real gradients: what a backend computes is what the theory is told."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Slot
from mlxhog.arena.child import Lane
from mlxhog.optim.tables import Tables
from mlxhog.theory.analysis.sampling import LAGS, compare_stale_gradients
from mlxhog.theory.analysis.written import WrittenSteps
from mlxhog.training.run import train
from tests.theory.analysis.measured import MAD_MODEL, sampled, subject, touched, touched_rows
from tests.tolerances import (
    AGED_F32,
    assert_close,
)
from tests.training.small import MIXED_MODEL, small_config

BACKENDS = ("torch:cpu", "mlx:cpu")
TICKETS = [(0, 0), (0, 3), (1, 5)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", [None, MIXED_MODEL], ids=["xlstm", "xlstm_v1"])
def test_an_update_touches_the_rows_of_its_tokens_and_nearly_all_of_dense_blocks(
    tmp_path, backend, architecture
):
    small = subject(tmp_path, architecture=architecture, backend=backend)
    sampling = sampled(small, TICKETS)
    rows = touched_rows(sampling, small, "embedding")
    for number, ticket in enumerate(TICKETS):
        tokens = small.batches().at(*ticket).x
        assert np.flatnonzero(rows[number]).tolist() == np.unique(tokens).tolist()
    for block in small.blocks[1:]:
        assert touched(sampling, small, block.name).mean() > 0.95


@pytest.mark.parametrize(("sparsify", "share"), [("topk:0.02", 0.02), ("threshold:3", 0.01)])
def test_of_a_sparsified_run_the_elements_count_that_a_worker_would_write(
    tmp_path, sparsify, share
):
    small = subject(tmp_path, sparsify=sparsify)
    sampling = sampled(small, TICKETS)
    elements = np.concatenate([touched(sampling, small, one.name).T for one in small.blocks])
    assert 0 < elements.mean() < 2 * share


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_beyond_the_sequence_and_experts_not_taken_are_never_touched(tmp_path, backend):
    architecture = MAD_MODEL % "{type: moe-swiglu, experts: 8, active: 1, inner: 4}"
    small = subject(tmp_path, architecture=architecture, backend=backend, batch_size=1)
    sampling = sampled(small, TICKETS)
    (positions,) = [one.name for one in small.blocks if "position" in one.name]
    rows = touched_rows(sampling, small, positions)
    assert rows[:, :32].all()
    assert not rows[:, 32:].any()  # the table has 48 rows, sequences 32 tokens
    (slot,) = [s for b in small.blocks for s in b.slots if s.name.endswith(".w1.weight")]
    number = [slot in one.slots for one in small.blocks].index(True)
    block = small.blocks[number]
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
    fresh = sampled(small, TICKETS)
    trained = sampled(replace(small, checkpoint=Path(result.checkpoint)), TICKETS)
    assert (trained.losses < fresh.losses - 1).all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon(moments=shared, embedding_lr=2.0)"])
def test_looking_at_how_gradients_change_leaves_the_parameters_as_they_were(tmp_path, optimizer):
    small, lane = subject(tmp_path, optimizer=optimizer), Lane(None, 0)
    before = sampled(small, TICKETS, lane)
    others = [(0, k) for k in range(LAGS[-1])]
    ages = compare_stale_gradients(lane, small, TICKETS[:1], others, others[:2])
    assert [one.lag for one in ages] == list(LAGS)
    assert all(one.cosine < 1 for one in ages)
    after = sampled(small, TICKETS, lane)
    assert (before.losses == after.losses).all()
    assert (before.norms == after.norms).all()


SLOT = Slot(name="x", shape=(4,), offset=0, size=4, kind="dense")


class Quadratic:
    """f(x) = x' H x / 2 for a diagonal H, the same for every batch."""

    def __init__(self, diagonal, config):
        self.diagonal = np.array(diagonal, np.float32)
        self.backend = SimpleNamespace(inbox=np.ones(len(diagonal), np.float32), refresh=int)
        self.flat = np.zeros(len(diagonal), np.float32)
        self.grads, self.table_rows = {"x": self.flat}, {}
        self.subject = SimpleNamespace(steps=config)
        none = np.empty(0, np.float32)
        self.tables = Tables(flat=none, slots={}, means=np.empty(0), locks=None, mode=0)

    def optimizer(self):
        return WrittenSteps(self.subject.steps, {"x": SLOT}, self.backend.inbox, frozenset())

    def gradient(self, ticket):
        self.flat[:] = self.diagonal * self.backend.inbox
        return float(self.flat @ self.backend.inbox) / 2

    def move(self, step):
        self.backend.inbox += step


def lane_over(problem):
    lane = Lane(None, 0)
    lane.store["source"] = problem
    return lane


def test_gradients_of_a_quadratic_age_as_their_formula_says(tmp_path):
    lr = 0.1
    config = small_config(tmp_path, optimizer="sgd(weight_decay=0.0)", clip=0.0, lr=lr)
    problem = Quadratic([1.0, 1.0, 2.0, 0.5], config)
    others = [(0, k) for k in range(LAGS[-1])]
    lane = lane_over(problem)
    ages = compare_stale_gradients(lane, problem.subject, [(0, 0)], others, [])
    for one in ages:
        old = np.array([1.0, 1.0, 2.0, 0.5])
        fresh = old * (1 - lr * old) ** one.lag
        expected = old @ fresh / np.linalg.norm(old) / np.linalg.norm(fresh)
        assert_close(one.cosine, expected, AGED_F32)


def test_frozen_prompts_leave_the_embedding_sparse_and_every_other_block_dense(tmp_path):
    data = tmp_path / "examples.jsonl"
    records = [{"prompt": "abcdefgh" * 2, "completion": f" {k % 10}"} for k in range(40)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = {}
    for context in ("frozen", "trained"):
        small = subject(tmp_path, data=str(data), context=context)
        sampling = sampled(small, TICKETS)
        rows[context] = touched_rows(sampling, small, "embedding").sum(axis=1)
        assert touched(sampling, small, "head").mean() > 0.9
    assert (rows["frozen"] <= 1 + 2 * 2).all()  # the last of a prompt, and two completions
    assert (rows["trained"] >= rows["frozen"] + 7).all()
