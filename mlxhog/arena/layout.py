"""The layout of an arena: a pure function from parameters and sizes to byte offsets.

    counters            uint8    control words, one per 128-byte line (`control.py`)
    ledger              uint8    the ticket ledger's control words (`mlxhog/arena/ledger.py`)
    tickets             uint64   the ticket ledger's slots, a ring
    workers             uint8    one entry per worker slot, one for the creator (`workers.py`)
    locks               uint32   lock words: one per stripe of `params`, then one per row of every
                                 parameter of kind `rows` or `table`
    params              float32  every parameter, sorted by name, tables behind all others, then the
                                 lost-update probe, then a float per worker slot for the import
                                 self-check (`metal_steps.py`)
    <kept>              any      further segments that every layout of a run has
    <private>.<slot>    float32  optimizer state, slot by slot, laid out like `params` before its
                                 tables, or as `Layout.state` says where it has other shapes
    <shared>            float32  optimizer state of all, laid out like `params` before its tables
    <extra>             any      segments that a strategy declares

A table is a large parameter of which a batch reads and writes a few rows: passes over all
parameters at every step cover `Layout.n_dense` floats only.

A run that changes its strategy keeps its arena, and divides it anew from the first private segment
on. State that both strategies have stays in place: a slot's own, or the shared one at slot 1.

Every segment starts on a 16 KiB boundary (the largest page we meet: Apple silicon), every parameter
on a 128-byte boundary (the largest cache line), on every system, so layouts are portable.

macOS makes a shared object of several regions of 4 GiB, and a range that a GPU imports should lie
in one: `Layout.straddles` finds those that do not.
Source: XNU, `pshm_truncate`: each region has `ANON_MAX_SIZE`, 0xFFFFF000 bytes, rounded up or down
to 16 KiB: region k begins at k * 0x100000000 or before, and ends at (k + 1) * 0xFFFFC000 or behind.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from mlxhog.arena.workers import ENTRY_BYTES
from mlxhog.errors import ArenaError, ShapeError

PAGE = 16_384
ALIGN_FLOATS = 32  # 128 bytes
PAGE_FLOATS = PAGE // 4
STRIPE_FLOATS = 1024  # 4 KiB, guarded by one lock word
PROBE_FLOATS = 64
PROBE_NAME = "__probe__"
PARAMETER_COPY = -1  # count of an extra segment that is laid out like `params`
DENSE_COPY = -2  # the same without the tables
LOCK_WORDS = -3  # one item per lock word
MAX_SLOTS = 65_535  # lock words name a slot in 16 bits
RING_MIN, RING_MAX = 1 << 10, 1 << 20
KINDS = ("dense", "rows", "table")
REGION_STARTS, REGION_ENDS = 0x1_0000_0000, 0xFFFF_C000  # multiples, the latest and the earliest


class Parameter(Protocol):
    """The properties of a parameter that the layout uses; `mlxhog.models` declares them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, all at least 1."""

    @property
    def kind(self) -> str:
        """Its exclusion unit: `dense` (stripes), or one lock per row: `rows`, and `table`."""


@dataclass(frozen=True)
class Slot:
    """One parameter's place in the parameter segment, in floats.

    A `dense` parameter is guarded by lock word `offset // 1024` and the following; row r of a
    parameter of kind `rows` or `table` by lock word `row_word0 + r`.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int
    kind: str
    row_word0: int | None = None


@dataclass(frozen=True)
class Segment:
    """A typed run of bytes in the arena; `offset` counts bytes from the arena's start."""

    name: str
    dtype: str
    offset: int
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes in use, without the padding to the next segment."""
        return self.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """A planned arena: a value that its processes get beside the descriptor."""

    slots: dict[str, Slot]  # parameters, sorted by name, tables last
    probe: Slot  # the lost-update probe's floats, behind the last parameter
    n_dense: int  # length of the parameter segment before the tables, a multiple of 4096
    n_floats: int  # length of the parameter segment, a multiple of 4096; `n_dense` without tables
    segments: dict[str, Segment]  # ordered by offset
    n_kept: int  # number of the first segments that the run's other layouts have, too
    state: dict[str, dict[str, Slot]]  # private state with a layout of its own, by parameter
    n_lock_words: int  # stripes of the parameter segment plus rows
    n_tickets: int  # batches per epoch
    max_workers: int  # slots, numbered from 1
    total_bytes: int  # a multiple of 16 KiB

    @cached_property
    def dense(self) -> dict[str, Slot]:
        """The parameters that are no tables."""
        return {name: slot for name, slot in self.slots.items() if slot.kind != "table"}

    @property
    def dense_end(self) -> int:
        """Floats of the parameters that are no tables, as far as they stand for parameters."""
        return min(self.n_dense, self.probe.offset)

    @cached_property
    def tables(self) -> dict[str, Slot]:
        """The tables."""
        return {name: slot for name, slot in self.slots.items() if slot.kind == "table"}

    def parts(self, segment: str) -> Mapping[str, Slot]:
        """The slot of each parameter in a segment of parameters or of state."""
        whole = self.segments[segment].count >= self.n_floats
        return self.state.get(segment.rpartition(".")[0], self.slots if whole else self.dense)

    def straddles(self, name: str) -> bool:
        """Whether a segment may lie in more than one region of a shared object of macOS."""
        segment = self.segments[name]
        region = segment.offset // REGION_STARTS
        return segment.offset + segment.nbytes > (region + 1) * REGION_ENDS

    def self_check(self, slot: int) -> int:
        """Index in the parameter segment of the test float of worker slot `slot`."""
        return self.probe.offset + self.probe.size + slot - 1


def plan(
    params: Mapping[str, Parameter],
    *,
    max_workers: int = 16,
    slots: int | None = None,
    private: Sequence[str] = (),
    state: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None,
    shared: Sequence[str] = (),
    n_tickets: int,
    kept: Mapping[str, tuple[str, int]] | None = None,
    extra: Mapping[str, tuple[str, int]] | None = None,
) -> Layout:
    """Lay out an arena; nothing is created.

    Args:
        params: name -> shape and kind.
        max_workers: worker slots.
        slots: the first of them that have optimizer state; None is all.
        private: optimizer state per worker slot; `m` gives segments `m.1` .. `m.<slots>`.
        state: private state with shapes of its own, name -> parameter -> shape; a parameter that is
            missing has no such state.
        shared: optimizer state that all workers share.
        n_tickets: batches per epoch, at least 1.
        kept: more segments, name -> (dtype, count), which lie before those of the optimizer; a
            count of `PARAMETER_COPY` means one item per float of the parameter segment, one of
            `DENSE_COPY` those before the tables, and one of `LOCK_WORDS` an item per lock word.
        extra: the same, behind them.

    Raises:
        ShapeError: a parameter without a usable shape or kind.
        ArenaError: a count out of range, or two segments of one name.
    """
    if not 1 <= max_workers < MAX_SLOTS:
        raise ArenaError(f"max_workers is {max_workers}; an arena has 1 to {MAX_SLOTS - 1} slots")
    if n_tickets < 1:
        raise ArenaError(f"an epoch of {n_tickets} batches; the text is too short for one batch")
    for name, parameter in params.items():
        shape, kind = parameter.shape, parameter.kind
        is_known = kind == "dense" or (kind in KINDS and len(shape) == 2)
        if name in ("", PROBE_NAME) or not is_known:
            raise ShapeError(
                f"parameter {name!r} has kind {kind!r} and shape {shape}; it needs a name of its "
                "own, and the kind 'dense', or 'rows' or 'table' for a matrix"
            )
    shapes = {name: one.shape for name, one in params.items() if one.kind != "table"}
    tables = {name: one.shape for name, one in params.items() if one.kind == "table"}
    places, end = place_state(shapes)
    n_dense = _round_up(end, PAGE_FLOATS)
    if tables:
        behind, end = place_state(tables, n_dense)
        places |= behind
    probe = Slot(PROBE_NAME, (PROBE_FLOATS,), end, PROBE_FLOATS, "dense")
    n_floats = _round_up(end + PROBE_FLOATS + max_workers + 1, PAGE_FLOATS)
    n_dense = n_dense if tables else n_floats
    n_lock_words = n_floats // STRIPE_FLOATS
    for name, slot in places.items():
        if (kind := params[name].kind) != "dense":
            places[name] = replace(slot, kind=kind, row_word0=n_lock_words)
            n_lock_words += slot.shape[0]

    own = {name: place_state(shapes) for name, shapes in (state or {}).items()}
    pages = {name: _round_up(max(1, end), PAGE_FLOATS) for name, (_, end) in own.items()}
    floats = {name: pages.get(name, n_dense) for name in private}
    first = {
        "counters": ("uint8", PAGE),
        "ledger": ("uint8", PAGE),
        "tickets": ("uint64", ring(n_tickets, max_workers)),
        "workers": ("uint8", (max_workers + 1) * ENTRY_BYTES),
        "locks": ("uint32", n_lock_words),
        "params": ("float32", n_floats),
    }
    slots_with_state = range(1, 1 + (max_workers if slots is None else slots))
    of_optimizer = {f"{m}.{k}": ("float32", floats[m]) for k in slots_with_state for m in private}
    of_optimizer |= dict.fromkeys(shared, ("float32", n_dense))
    segments, offset = dict[str, Segment](), 0
    lengths = {PARAMETER_COPY: n_floats, DENSE_COPY: n_dense, LOCK_WORDS: n_lock_words}
    groups = (first, kept or {}, of_optimizer, extra or {})
    for name, (dtype, count) in (one for group in groups for one in group.items()):
        count = lengths.get(count, count)
        if name in segments:
            raise ArenaError(f"two segments are called {name!r}; give one of them another name")
        if count < 0:
            raise ArenaError(f"segment {name!r} has {count} items; at least 0 are possible")
        segments[name] = Segment(name, dtype, offset, count)
        offset = _round_up(offset + segments[name].nbytes, PAGE)
    return Layout(
        slots=places,
        probe=probe,
        n_dense=n_dense,
        n_floats=n_floats,
        segments=segments,
        n_kept=len(first) + len(kept or {}),
        state={name: of_state for name, (of_state, _) in own.items()},
        n_lock_words=n_lock_words,
        n_tickets=n_tickets,
        max_workers=max_workers,
        total_bytes=offset,
    )


def place_state(
    shapes: Mapping[str, tuple[int, ...]], offset: int = 0
) -> tuple[dict[str, Slot], int]:
    """Slots of these shapes in the order of names, aligned as parameters, and the next place.

    Raises:
        ShapeError: a size below 1.
    """
    slots = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if not all(n >= 1 for n in shape):
            raise ShapeError(f"{name!r} has shape {shape}; it needs sizes >= 1")
        slots[name] = Slot(name, shape, offset, math.prod(shape), "dense")
        offset = _round_up(offset + slots[name].size, ALIGN_FLOATS)
    return slots, offset


def ring(n_tickets: int, max_workers: int) -> int:
    """Slots of the ticket ring: two epochs and twice the workers, within bounds; a power of two."""
    least = max(RING_MIN, 2 * max_workers)
    return 1 << (min(max(2 * n_tickets, least), max(RING_MAX, least)) - 1).bit_length()


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
