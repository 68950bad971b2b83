"""How a model's blocks are put into groups."""

from __future__ import annotations

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.blocks import blocks
from mlxhog.models.registry import load_architecture
from mlxhog.strategies.sharing_out import groups

MODELS = ("tiny", "7to1-tiny", "mad-7to1", "mad-7to1-v1", "lfm2-tiny", "125m")
MIXED = ("7to1-tiny", "mad-7to1", "mad-7to1-v1")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_parameter_is_in_one_group(model: str, workers: int) -> None:
    cfg = load_architecture(model)
    made = groups(cfg, workers)
    assert len(made) == (workers + 1 if workers > 1 else 1)
    names = [name for group in made for block in group for name in block.params]
    assert sorted(names) == sorted(families.param_spec(cfg))
    assert all(made), "a group is empty"


@pytest.mark.parametrize("model", MIXED)
@pytest.mark.parametrize("workers", [2, 3, 6])
def test_mlstm_and_slstm_are_apart(model: str, workers: int) -> None:
    for group in groups(load_architecture(model), workers):
        assert {block.cell for block in group} - {None} in ({"mlstm"}, {"slstm"}, set())


def test_groups_of_equal_layers_are_of_about_the_same_size() -> None:
    sizes = [sum(block.size for block in group) for group in groups(load_architecture("125m"), 3)]
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("model", MODELS)
def test_a_block_is_the_embedding_a_layer_or_the_head(model: str) -> None:
    cfg = load_architecture(model)
    found = {block.name: block for block in blocks(cfg)}
    assert list(found) == [
        "embedding", *(f"layer {k}" for k in range(cfg.num_hidden_layers)), "head"
    ]  # fmt: skip
    assert families.embedding(cfg) in found["embedding"].params
    assert families.head(cfg) in found["head"].params
    assert sum(block.size for block in found.values()) == families.param_count(cfg)


def test_the_cell_of_a_feed_forward_layer_is_that_of_the_layer_before() -> None:
    cells = [block.cell for block in blocks(load_architecture("mad-7to1")) if block.is_layer]
    assert cells == ["mlstm"] * 14 + ["slstm"] * 2


def test_more_workers_than_blocks_are_refused_with_the_most_there_can_be() -> None:
    with pytest.raises(ConfigError, match="take at most 5 workers"):
        groups(load_architecture("tiny"), 6)
    assert len(groups(load_architecture("tiny"), 5)) == 6
