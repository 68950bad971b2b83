from mlxhog import arena
from mlxhog.arena import Slot
from mlxhog.models import families
from mlxhog.models.registry import architectures, load_architecture
from mlxhog.theory.analysis.sampling import ELEMENT, GRAINS, LINE, ROW, STRIPE, Block, blocks_of


def slot(name: str, shape: tuple[int, ...], offset: int) -> Slot:
    size = 1
    for length in shape:
        size *= length
    return Slot(name=name, shape=shape, offset=offset, size=size, kind="dense", init="zeros")


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
    assert [block.row_sparse for block in blocks] == [True] + [False] * 6
    assert sum(block.parameters for block in blocks) == families.param_count(model)


def test_lines_begin_anew_with_every_parameter_and_rows_are_those_of_the_matrices():
    block = Block(
        "b", None, (slot("matrix", (3, 40), 0), slot("vector", (5,), 128)), row_sparse=False
    )
    assert block.firsts(ELEMENT).tolist() == list(range(125))
    assert block.firsts(LINE).tolist() == [0, 32, 64, 96, 120]
    assert block.firsts(ROW).tolist() == [0, 40, 80, 120]


def test_parameters_that_share_a_stripe_of_the_arena_share_the_group():
    block = Block(
        "b",
        None,
        (slot("a", (1000,), 512), slot("b", (100,), 1536), slot("c", (10,), 5120)),
        row_sparse=False,
    )
    # a: floats 512..1511 of the arena, so stripes 0 and 1; b: 1536..1635, stripe 1; c: stripe 5
    assert block.firsts(STRIPE).tolist() == [0, 512, 1100]


def test_every_grain_begins_at_the_first_element():
    block = Block("b", None, (slot("a", (7, 2, 3), 96),), row_sparse=False)
    assert all(block.firsts(grain)[0] == 0 for grain in GRAINS)
    assert block.firsts(ROW).tolist() == [0, 6, 12, 18, 24, 30, 36]
    assert [block.groups(grain) for grain in GRAINS] == [len(block.firsts(g)) for g in GRAINS]
