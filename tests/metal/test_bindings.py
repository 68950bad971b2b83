"""The native bindings refuse what would write outside the segment, before writing anything."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog._native import ops
from mlxhog.errors import ShapeError
from mlxhog.optim import updates
from mlxhog.optim.gradients import Rows
from tests.metal.shared import shared
from tests.optim.small import Slot
from tests.pairs import each_of

LOSSLESS, RACY, IN_TURN = 0, 1, 3
N = 2 * _native.STRIPE
SGD = ("gradient", (), (1.0, 1.0, 0.0, 0.0))


def ones(n):
    return np.ones(n, np.float32)


def dense(s, offset=0, n=1, mode=RACY, locks=None, delta=None):
    _native.add(locks, mode, s.floats, offset, ones(n) if delta is None else delta)


def rows(s, index=None, width=8, n=16):
    index = None if index is None else np.array(index, np.int32)
    _native.add(s.locks(1), LOSSLESS, s.floats, 0, ones(n), (index, width, 0, 16))


def at(s, index, *, n=None, word0=None, mode=RACY):
    index = np.array(index, np.int32)
    place = (s.floats, 0, 16, 8, word0)
    _native.add_at(s.locks(1), mode, *place, index, ones(len(index) if n is None else n))


def python_rows(s, row):
    delta = Rows(np.array([0, row], np.int32), np.ones((2, 8), np.float32))
    updates.add(s.floats, Slot("table", (4, 8), 0), delta, locks=None, mode=RACY)


def step_rows(s, *index, floats=N):
    rows = (np.array(index, np.int32), 8, None, floats)
    _native.step(*SGD, None, RACY, s.floats, 0, ones(16), rows=rows)


def step(s, kernel, rates, *moments, **how):
    of = (kernel, rates, (1.0, 1.0, 0.0, 0.0))
    _native.step(*of, None, RACY, s.floats, 0, ones(8), [ones(m) for m in moments], **how)


REFUSED = {
    "past the end": (lambda s: dense(s, n=N + 1), "do not fit the segment"),
    "behind the end": (lambda s: dense(s, N + 1, 0), "do not fit the segment"),
    "a stripe without a word": (
        lambda s: dense(
            s, _native.STRIPE, mode=LOSSLESS, locks=_native.Locks(s.words[:1], s.table, 1, 1)
        ),
        "there are 1",
    ),
    "lossless without locks": (lambda s: dense(s, mode=LOSSLESS), "needs the arena's locks"),
    "mode 4": (lambda s: dense(s, mode=4, locks=s.locks(1)), "wanted 0"),
    "turns": (lambda s: dense(s, mode=IN_TURN, locks=s.locks(1)), "the locks have no turns"),
    "row -1": (lambda s: rows(s, [0, -1]), "row -1 is outside"),
    "row 2": (lambda s: rows(s, [0, 2]), "row 2 is outside"),
    "too many rows": (lambda s: rows(s, n=24), "values has 3 rows; wanted 2"),
    "another width": (lambda s: rows(s, width=7), "not rows of width"),
    "a row below a slot": (lambda s: python_rows(s, -1), "the parameter has rows 0 to 3"),
    "elements that descend": (lambda s: at(s, [3, 2]), "ascending"),
    "an element below": (lambda s: at(s, [-1]), "outside the 16"),
    "an element above": (lambda s: at(s, [16]), "outside the 16"),
    "a place without a value": (lambda s: at(s, [1, 2], n=1), "2 places for 1 values"),
    "elements in turn": (lambda s: at(s, [1], mode=IN_TURN), "not added in turn"),
    **{
        f"elements without words from {first} on": (
            lambda s, first=first: at(s, [1], word0=first, mode=LOSSLESS),
            f"2 lock words from {first} on: there are 2",
        )
        for first in (1, (1 << 64) - 1, (1 << 64) - 2)
    },
    "a row twice": (lambda s: step_rows(s, 1, 1), "ascend"),
    "a row behind its parameter": (lambda s: step_rows(s, 1, 2, floats=16), "row 2 is outside"),
    "a moment of another size": (lambda s: step(s, "mean", [1] * 5, 3), "a moment has 3 floats"),
    "moments of another kernel": (lambda s: step(s, "gradient", [], 8), "and has 1 moments"),
    "no kernel": (lambda s: step(s, "none", []), "no kernel is called none"),
    "no means, shared": (lambda s: step(s, "lion", [1] * 5, 8, shared=True), "only means are"),
    "shared, pending": (
        lambda s: step(s, "mean", [1] * 5, 8, shared=True, pending=ones(8)),
        "a pending step moves nothing shared",
    ),
    "fewer rows than none": (
        lambda s: _native.newton_schulz(
            [np.ones((2, 2), np.float32)],
            [np.ones((2, 2), np.float32)],
            [1.0],
            np.ones((1, 3), np.float32),
            rows=-1,
            threads=1,
        ),
        "rows is -1",
    ),
    "no numbers to quantize": (
        lambda s: ops.quantize(
            np.ones((2, 0), np.float32),
            np.ones((2, 0), np.uint32),
            *np.ones((2, 2, 1), np.float32),
            threads=1,
        ),
        "IN",
    ),
    "half a record": (lambda s: step(s, "gradient", [], last=ones(8)), "both or neither"),
    "a width of swaps": (lambda s: _native.add_cas(s.floats, 0, ones(3), 3), "1 or 2"),
    "a snapshot": (lambda s: _native.read(np.empty(3, np.float32), s.floats), "dst has 3"),
}


@each_of("case", REFUSED)
def test_what_does_not_fit_the_segment_is_refused_unwritten(case):
    call, message = REFUSED[case]
    with shared(N, n_words=2) as segment:
        with pytest.raises((ValueError, ShapeError), match=message):
            call(segment)
        assert not segment.floats.any()
        assert not segment.words.any()


@each_of("delta", [np.ones(8), ones(8)[::2], np.ones(8, np.int32)])
def test_other_dtypes_and_strides_are_refused_rather_than_copied(delta):
    with shared(N) as segment:
        with pytest.raises(TypeError):
            dense(segment, delta=delta)
        segment.floats.flags.writeable = False
        with pytest.raises(TypeError):
            dense(segment)
        assert not segment.floats.any()
