"""The layout is a pure function; these are its promises."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.arena.layout import PAGE, PROBE_NAME, STRIPE_FLOATS, plan
from mlxhog.errors import ArenaError, ShapeError
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from tests.arena.test_arena import Spec
from tests.pairs import each_of

names = st.text("abcxyz.0123456789_é", min_size=1, max_size=12)
dense = st.builds(Spec, st.lists(st.integers(1, 40), max_size=3).map(tuple))
rows = st.builds(Spec, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.just("rows"))
layouts = st.builds(
    plan,
    st.dictionaries(names, dense | rows, max_size=12),
    max_workers=st.integers(1, 20),
    private=st.lists(st.sampled_from("mv"), unique=True),
    shared=st.lists(st.sampled_from("st"), unique=True),
    n_tickets=st.integers(1, 1 << 30),
    kept=st.just({"ring": ("uint8", 5)}),
    extra=st.just({"grads": ("float32", -1)}),
)


@given(layouts)
def test_segments_and_parameters_lie_apart_on_their_boundaries_in_order(layout):
    end = 0
    for segment in layout.segments.values():
        assert segment.offset % PAGE == 0
        assert segment.offset >= end
        end = segment.offset + segment.nbytes
    assert layout.total_bytes >= end
    assert layout.total_bytes % PAGE == 0
    end = 0
    for slot in (*layout.slots.values(), layout.probe):
        assert slot.offset % 32 == 0  # 128 bytes
        assert slot.offset >= end
        assert math.prod(slot.shape) == slot.size
        end = slot.offset + slot.size
    assert list(layout.slots) == sorted(layout.slots)
    assert end <= layout.n_floats == layout.segments["params"].count
    assert layout.n_floats % 4096 == 0


@given(layouts)
def test_every_stripe_and_row_has_a_lock_word_and_the_ring_of_tickets_covers_two_epochs(layout):
    words = list(range(layout.n_floats // STRIPE_FLOATS))
    for slot in layout.slots.values():
        if slot.kind == "rows":
            words += range(slot.row_word0, slot.row_word0 + slot.shape[0])
    assert words == list(range(layout.n_lock_words))
    ring = layout.segments["tickets"].count
    assert ring & (ring - 1) == 0
    assert min(2 * layout.n_tickets, 1 << 20) <= ring <= 1 << 31
    assert ring >= 2 * layout.max_workers


def test_layouts_that_differ_behind_their_kept_segments_begin_alike():
    def one(**state):
        specs, kept = {"w": Spec((9000,))}, {"ring": ("uint8", 5), "copy": ("float32", -1)}
        return plan(specs, max_workers=3, n_tickets=1, kept=kept, **state)

    few, many = one(private=("m",), slots=2), one(shared=("s",), extra={"grads": ("float32", -1)})
    first, second = ([*layout.segments.values()] for layout in (few, many))
    assert few.n_kept == many.n_kept == 8
    assert first[:8] == second[:8]
    assert [one.name for one in first[8:]] == ["m.1", "m.2"]
    assert [one.name for one in second[8:]] == ["s", "grads"]


ANON_MAX_SIZE = 0xFFFFF000  # of XNU: what it asks for at most when it makes a shared object


def test_a_segment_that_may_lie_in_two_pieces_of_a_shared_object_of_macos_is_known():
    """As pure numbers: nothing of this size is created."""
    params = families.param_spec(load_architecture("1.3b"))
    layout = plan(params, max_workers=16, private=("m", "v"), shared=("s",), n_tickets=10**9)
    sizes = (ANON_MAX_SIZE, ANON_MAX_SIZE // PAGE * PAGE, -(-ANON_MAX_SIZE // PAGE) * PAGE)
    starts = {at for size in sizes for at in range(size, layout.total_bytes, size)}
    for one in layout.segments.values():
        crosses = any(one.offset < at < one.offset + one.nbytes for at in starts)
        assert layout.straddles(one.name) >= crosses, one
    assert not layout.straddles("counters")


@each_of(
    ("specs", "changes", "error", "words"),
    [
        ({"w": Spec((0, 3))}, {}, ShapeError, "'w'"),
        ({"w": Spec((3,), kind="rows")}, {}, ShapeError, "'w'"),
        ({PROBE_NAME: Spec((3,))}, {}, ShapeError, PROBE_NAME),
        ({}, {"max_workers": 65_535}, ArenaError, "1 to"),
        ({}, {"n_tickets": 0}, ArenaError, "too short"),
        ({}, {"extra": {"params": ("float32", 1)}}, ArenaError, "two segments"),
    ],
)
def test_impossible_parameters_and_counts_are_refused(specs, changes, error, words):
    with pytest.raises(error, match=words):
        plan(specs, **{"n_tickets": 1, **changes})


SMALL = {"m": {"b": (7, 2), "a": (3,)}, "norm": {"b": (1,)}}


def test_state_may_have_shapes_of_its_own():
    specs = {"a": Spec((3,)), "b": Spec((700, 200))}
    private = ("m", "v", "norm")
    layout = plan(specs, max_workers=2, private=private, shared=("s",), state=SMALL, n_tickets=1)
    assert [s for s in layout.segments if s[0] in "mvs"] == ["m.1", "v.1", "m.2", "v.2", "s"]
    places = layout.parts("m.2")
    assert {name: slot.shape for name, slot in places.items()} == SMALL["m"]
    assert [places["a"].offset, places["b"].offset] == [0, 32]  # in name order, 128 bytes apart
    assert layout.parts("v.2") == layout.parts("params") == layout.slots
    assert list(layout.parts("norm.1")) == ["b"]
    sizes = {name: layout.segments[f"{name}.1"].nbytes for name in ("m", "v", "norm")}
    assert sizes == {"m": PAGE, "v": 4 * layout.n_floats, "norm": PAGE}
