"""Blocks of a model, and Omega, rho, Delta and p_conf of them and of rows of the embedding."""

from itertools import combinations

import numpy as np
import pytest

from mlxhog import arena
from mlxhog.arena.child import Child
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.models import families
from mlxhog.models.registry import architectures, load_architecture
from mlxhog.research.analysis import conflicts
from mlxhog.research.analysis.analyze import tickets
from mlxhog.research.analysis.conflicts import HOTTEST, call_child, count_rows, max_samples, measure
from mlxhog.research.analysis.sampling import Sampled, blocks_of
from tests.research.analysis.test_sampling import subject
from tests.tolerances import TWO_DIVISIONS, assert_close


def test_batches_are_drawn_without_repetition_and_the_same_by_the_same_seed():
    drawn = tickets(100, 60, seed=3)
    assert len(set(drawn)) == 60
    assert {epoch for epoch, _ in drawn} == {0}
    assert drawn == tickets(100, 60, seed=3) != tickets(100, 60, seed=4)
    assert tickets(5, 5, seed=0) == [(0, k) for k in range(5)]
    longer = tickets(5, 12, seed=0)
    assert len(set(longer)) == 12
    assert max(longer) <= (2, 4)


def test_bitmaps_that_do_not_fit_are_refused_before_anything_is_sampled(tmp_path, monkeypatch):
    small = subject(tmp_path)
    one = sum(-(-block.parameters // 8) for block in small.blocks)
    monkeypatch.setattr(conflicts, "BITMAP_BYTES", 40 * one)
    assert max_samples(small) == 40
    monkeypatch.setattr(conflicts, "BITMAP_BYTES", 5 * one)
    with pytest.raises(EnvironmentLacks, match="analyze a narrower model"):
        max_samples(small)


def test_what_the_child_cannot_do_is_said_in_its_words():
    with Child() as child, pytest.raises(WorkerFailed, match="cannot be computed: TypeError"):
        call_child(child, int)


def test_a_gradient_that_is_not_finite_names_its_batch(tmp_path, monkeypatch):
    broken = Sampled([], np.array([1.0, np.nan]), np.array([1.0, np.nan]))
    monkeypatch.setattr(conflicts, "call_child", lambda *how: broken)
    with pytest.raises(Diverged, match="batch 7 of epoch 1 is not finite"):
        measure(None, subject(tmp_path), [(0, 3), (1, 7)], lambda *step: None)


def test_every_parameter_of_every_architecture_but_a_table_is_in_exactly_one_block():
    for name in architectures():
        model = load_architecture(name)
        if families.param_count(model) > 2_000_000:
            continue
        spec = families.param_spec(model)
        layout = arena.plan(spec, max_workers=1, n_tickets=8)
        blocks = blocks_of(model, layout.slots)
        names = [one.name for block in blocks for one in block.slots]
        assert sorted(names) == sorted(layout.dense), name
        if name == "tiny":
            layers = [f"layer {k}" for k in range(4)]
            assert [block.name for block in blocks] == ["embedding", *layers, "out_norm", "head"]


def test_rows_of_batches_are_counted_as_by_hand(tmp_path):
    batches = subject(tmp_path, seq_len=4, batch_size=1).plan.batches()
    tickets = [(0, k) for k in range(60)]
    rows = count_rows(batches, tickets, 320, ByteTokenizer(), lambda step: None)
    edges = [set(batches.at(0, k).x.reshape(-1).tolist()) for k in range(60)]
    touches = {token: sum(token in edge for edge in edges) for token in set().union(*edges)}
    hottest = sorted(touches, key=lambda token: (-touches[token], token))[:HOTTEST]
    rest = [edge - set(hottest) for edge in edges]
    for name, sets in (("p_conf", edges), ("without_hottest", rest)):
        pairs = [bool(a & b) for a, b in combinations(sets, 2)]
        assert_close(rows[name], sum(pairs) / len(pairs), TWO_DIVISIONS)
    assert rows["omega"] == max(map(len, edges))
    assert rows["delta"] == max(touches.values()) / 60 <= rows["rho"] <= 1
    assert rows["never"] == 320 - len(touches)
    assert [(one["id"], one["share"]) for one in rows["hottest"]] == [
        (token, touches[token] / 60) for token in hottest
    ]
    assert rows["hottest"][0]["text"] in ("'e'", "' '")
