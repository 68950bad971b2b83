"""The native bindings refuse what would write outside the segment, before writing anything."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.metal.kernels.step_rules import sgd_hp
from tests.metal.shared import shared

LOSSLESS, RACY = 0, 1
N = 2 * _native.STRIPE
ZEROS = np.zeros(N, np.float32)
HP = sgd_hp(lr=1.0, weight_decay=0.0)


@pytest.fixture
def segment():
    with shared(N, n_words=2) as result:
        yield result
        assert not result.floats.any()
        assert not result.words.any()


def ones(n):
    return np.ones(n, np.float32)


@pytest.mark.parametrize(("offset", "n"), [(0, N + 1), (N, 1), (N + 1, 0), (1, N)])
def test_a_dense_add_past_the_end_is_refused(segment, offset, n):
    with pytest.raises(ValueError, match="do not fit the segment"):
        _native.add_dense(None, RACY, segment.floats, offset, ones(n))


def test_a_stripe_without_a_lock_word_is_refused(segment):
    locks = _native.Locks(segment.words[:1], segment.table, 1, 1)
    with pytest.raises(ValueError, match="only 1 lock words"):
        _native.add_dense(locks, LOSSLESS, segment.floats, _native.STRIPE, ones(1))


def test_lossless_without_locks_is_refused(segment):
    with pytest.raises(ValueError, match="needs the arena's locks"):
        _native.add_dense(None, LOSSLESS, segment.floats, 0, ones(1))


@pytest.mark.parametrize("mode", [-1, 4, 9])
def test_a_mode_without_a_kernel_is_refused(segment, mode):
    with pytest.raises(ValueError, match="wanted 0"):
        _native.add_dense(segment.locks(1), mode, segment.floats, 0, ones(1))


def test_adds_in_turn_need_turns(segment):
    with pytest.raises(ValueError, match="the locks have no turns"):
        _native.add_dense(segment.locks(1), 3, segment.floats, 0, ones(1))


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_lock_words_is_refused(segment, row):
    index = np.array([0, row], np.int32)
    with pytest.raises(ValueError, match=f"row {row} is outside"):
        _native.add_rows(segment.locks(1), LOSSLESS, segment.floats, 0, 8, 0, index, ones(16))


def test_more_rows_than_fit_are_refused(segment):
    with pytest.raises(ValueError, match="hold"):
        _native.add_rows(None, RACY, segment.floats, 0, 64, None, None, ones(N + 64))


def test_rows_of_another_width_are_refused(segment):
    with pytest.raises(ValueError, match="not rows of width"):
        _native.add_rows(None, RACY, segment.floats, 0, 7, None, None, ones(16))


@pytest.mark.parametrize("index", [[1, 1], [2, 1]])
def test_an_optimizer_step_wants_each_row_once_and_ascending(segment, index):
    rows = np.array(index, np.int32)
    place = (RACY, segment.floats, 0, 8, None, rows, ones(16))
    with pytest.raises(ValueError, match="ascend"):
        _native.step_rows("sgd", None, *place, None, None, HP)


def test_state_of_another_size_is_refused(segment):
    with pytest.raises(ValueError, match="m has 3 floats"):
        _native.step("momentum", None, RACY, segment.floats, 0, ones(8), ones(3), None, HP)


@pytest.mark.parametrize(("rule", "m", "expected"), [("sgd", N, "has m"), ("lion", 0, "no rule")])
def test_a_rule_with_moments_of_another_is_refused(segment, rule, m, expected):
    with pytest.raises(ValueError, match=expected):
        _native.step(rule, None, RACY, segment.floats, 0, ones(8), ones(m), None, HP)


@pytest.mark.parametrize(
    "delta",
    [np.ones(8), np.ones(8, np.float32)[::2], np.ones(8, np.int32)],
    ids=["float64", "strided", "int32"],
)
def test_other_dtypes_and_strides_are_refused_rather_than_copied(segment, delta):
    with pytest.raises(TypeError):
        _native.add_dense(None, RACY, segment.floats, 0, delta)


def test_a_read_only_segment_is_refused(segment):
    flat = segment.floats.view()
    flat.flags.writeable = False
    with pytest.raises(TypeError):
        _native.add_dense(None, RACY, flat, 0, ones(1))


def test_a_cas_width_that_does_not_exist_is_refused(segment):
    with pytest.raises(ValueError, match="1, 2 or 4"):
        _native.add_cas(segment.floats, 0, ones(3), 3)


def test_snapshots_of_other_sizes_are_refused(segment):
    with pytest.raises(ValueError, match="dst has 3 floats"):
        _native.snapshot(np.empty(3, np.float32), segment.floats)
    with pytest.raises(ValueError, match="prev has 3 floats"):
        _native.snapshot_predict(ZEROS.copy(), segment.floats, np.empty(3, np.float32), 0.5)
