"""The native bindings refuse what would write outside the segment, before writing anything."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.metal.kernels.step_rules import sgd_hp
from tests.metal.shared import shared
from tests.pairs import each_of

LOSSLESS, RACY, IN_TURN = 0, 1, 3
N = 2 * _native.STRIPE
HP = sgd_hp(lr=1.0, weight_decay=0.0)


def ones(n):
    return np.ones(n, np.float32)


def dense(s, offset=0, n=1, mode=RACY, locks=None, delta=None):
    _native.add_dense(locks, mode, s.floats, offset, ones(n) if delta is None else delta)


def rows(s, index=None, width=8, n=16, mode=RACY, locks=None):
    index = None if index is None else np.array(index, np.int32)
    _native.add_rows(locks, mode, s.floats, 0, width, 0, index, ones(n))


def step_rows(s, *index):
    place = (RACY, s.floats, 0, 8, None, np.array(index, np.int32), ones(16))
    _native.step_rows("sgd", None, *place, None, None, HP)


def step(s, rule, m):
    _native.step(rule, None, RACY, s.floats, 0, ones(8), ones(m), None, HP)


REFUSED = {
    "past the end": (lambda s: dense(s, n=N + 1), "do not fit the segment"),
    "at the end": (lambda s: dense(s, N), "do not fit the segment"),
    "behind the end": (lambda s: dense(s, N + 1, 0), "do not fit the segment"),
    "over the end": (lambda s: dense(s, 1, N), "do not fit the segment"),
    "a stripe without a word": (
        lambda s: dense(
            s,
            _native.STRIPE,
            mode=LOSSLESS,
            locks=_native.Locks(s.words[:1], s.table, 1, 1),
        ),
        "only 1 lock words",
    ),
    "lossless without locks": (lambda s: dense(s, mode=LOSSLESS), "needs the arena's locks"),
    "mode -1": (lambda s: dense(s, mode=-1, locks=s.locks(1)), "wanted 0"),
    "mode 4": (lambda s: dense(s, mode=4, locks=s.locks(1)), "wanted 0"),
    "turns": (lambda s: dense(s, mode=IN_TURN, locks=s.locks(1)), "the locks have no turns"),
    "row -1": (
        lambda s: rows(s, [0, -1], mode=LOSSLESS, locks=s.locks(1)),
        "row -1 is outside",
    ),
    "row 2": (lambda s: rows(s, [0, 2], mode=LOSSLESS, locks=s.locks(1)), "row 2 is outside"),
    "too many rows": (lambda s: rows(s, width=64, n=N + 64), "hold"),
    "another width": (lambda s: rows(s, width=7), "not rows of width"),
    "a row twice": (lambda s: step_rows(s, 1, 1), "ascend"),
    "rows that descend": (lambda s: step_rows(s, 2, 1), "ascend"),
    "state of another size": (lambda s: step(s, "momentum", 3), "m has 3 floats"),
    "moments of another rule": (lambda s: step(s, "sgd", N), "has m"),
    "no rule": (lambda s: step(s, "lion", 0), "no rule"),
    "a width of swaps": (lambda s: _native.add_cas(s.floats, 0, ones(3), 3), "1, 2 or 4"),
    "a snapshot": (lambda s: _native.snapshot(np.empty(3, np.float32), s.floats), "dst has 3"),
    "a prediction": (
        lambda s: _native.snapshot_predict(ones(N), s.floats, np.empty(3, np.float32), 0.5),
        "prev has 3 floats",
    ),
}


@each_of("case", REFUSED)
def test_what_does_not_fit_the_segment_is_refused_unwritten(case):
    call, message = REFUSED[case]
    with shared(N, n_words=2) as segment:
        with pytest.raises(ValueError, match=message):
            call(segment)
        assert not segment.floats.any()
        assert not segment.words.any()


@each_of(
    "delta",
    [np.ones(8), np.ones(8, np.float32)[::2], np.ones(8, np.int32)],
    ids=["float64", "strided", "int32"],
)
def test_other_dtypes_and_strides_are_refused_rather_than_copied(delta):
    with shared(N) as segment:
        with pytest.raises(TypeError):
            dense(segment, delta=delta)
        segment.floats.flags.writeable = False
        with pytest.raises(TypeError):
            dense(segment)
        assert not segment.floats.any()
