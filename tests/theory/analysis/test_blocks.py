"""The blocks of a model, and rows of the embedding under real batches, counted by hand."""

from itertools import combinations

import pytest

from mlxhog import arena
from mlxhog.data import prepare
from mlxhog.data.batches import Batches
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.models import families
from mlxhog.models.registry import architectures, load_architecture
from mlxhog.theory.analysis.conflicts import HOTTEST, count_rows
from mlxhog.theory.analysis.sampling import blocks_of
from tests.tolerances import TWO_DIVISIONS, assert_close
from tests.training.small import small_config


def test_every_parameter_of_every_architecture_is_in_exactly_one_block():
    for name in architectures():
        model = load_architecture(name)
        if families.param_count(model) > 2_000_000:
            continue
        spec = families.param_spec(model)
        slots = arena.plan(spec, max_workers=1, n_tickets=8).slots
        names = [one.name for block in blocks_of(model, slots) for one in block.slots]
        assert sorted(names) == sorted(spec), name


def test_blocks_are_the_embedding_the_layers_the_last_norm_and_the_head():
    model = load_architecture("tiny")
    slots = arena.plan(families.param_spec(model), max_workers=1, n_tickets=8).slots
    blocks = blocks_of(model, slots)
    assert [block.name for block in blocks] == [
        "embedding", "layer 0", "layer 1", "layer 2", "layer 3", "out_norm", "head",
    ]  # fmt: skip
    assert sum(block.parameters for block in blocks) == families.param_count(model)


# -- rows of the embedding -------------------------------------------------------------------------


@pytest.fixture
def batches(tmp_path):
    data = prepare.prepare(small_config(tmp_path).data)
    return Batches.open(data.train, seq_len=4, batch_size=1, seed=0)


def counted(batches, numbers):
    tickets = [(0, k) for k in numbers]
    (rows,) = count_rows(batches, tickets, 320, ByteTokenizer(), None, lambda step: None)
    return rows


def test_every_number_is_that_of_a_count_by_hand(batches):
    rows = counted(batches, range(60))
    edges = [set(batches.at(0, k).x.reshape(-1).tolist()) for k in range(60)]
    touches = {token: sum(token in edge for edge in edges) for token in set().union(*edges)}
    meets = [sum(bool(edge & other) for other in edges) for edge in edges]
    pairs = [bool(a & b) for a, b in combinations(edges, 2)]
    assert rows["omega"] == max(map(len, edges))
    assert rows["delta"] == max(touches.values()) / 60
    assert rows["rho"] == max(meets) / 60
    assert_close(rows["p_conf"], sum(pairs) / len(pairs), TWO_DIVISIONS)
    assert rows["never"] == 320 - len(touches)
    hottest = sorted(touches, key=lambda token: (-touches[token], token))[:HOTTEST]
    assert [token["id"] for token in rows["hottest"]] == hottest
    assert [token["share"] for token in rows["hottest"]] == [touches[t] / 60 for t in hottest]
    assert rows["hottest"][0]["text"] in ("'e'", "' '")
    rest = [edge - set(hottest) for edge in edges]
    pairs = [bool(a & b) for a, b in combinations(rest, 2)]
    assert_close(rows["without_hottest"], sum(pairs) / len(pairs), TWO_DIVISIONS)
    assert 0 < rows["without_hottest"] < rows["p_conf"] < 1
