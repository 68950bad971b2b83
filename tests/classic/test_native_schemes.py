"""What the schemes promise with several workers: who sees whose writes, what is never lost."""

import os
import time

import numpy as np
import pytest

from mlxhog import _native
from tests.classic.native import (
    BOARD_FLOATS,
    WIDTH,
    Sparse,
    board_of,
    orders,
    scheme_of,
    x_of,
)
from tests.metal.shared import PROCESSES, TIMEOUT_S, run, shared, spawned
from tests.tolerances import CLASSIC_STEP_F32, assert_close

N, D, WORKERS = 301, 200, 3  # shares of 101, 100 and 100 examples
GAMMA = 0.2
X_FLOATS = BOARD_FLOATS + -(-D // WIDTH) * WIDTH


def train_share(segment, kind, rank, options, batch, epochs):
    """One worker of a run on `Sparse.random(N, D)`; epochs without a reset between them."""
    problem = Sparse.random(N, D).problem(x_of(segment))
    scheme = scheme_of(segment, kind, rank, WORKERS, **options)
    for epoch in range(epochs):
        share = orders(N, WORKERS, seed=epoch)[rank]
        assert problem.run(scheme, share, GAMMA, batch) == len(share)


def trained(kind, *, batch=1, epochs=1, **options):
    """x after a run of three processes."""
    with shared(X_FLOATS, 64, WORKERS) as segment:
        for rank in range(WORKERS):
            segment.locks(rank + 1)
        jobs = [(segment, kind, rank, options, batch, epochs) for rank in range(WORKERS)]
        run(train_share, jobs)
        assert not segment.words.any(), "a lock is still taken"
        examples = [board_of(segment, WORKERS).examples(rank) for rank in range(WORKERS)]
        assert examples == [epochs * len(share) for share in orders(N, WORKERS)]
        return x_of(segment).copy().reshape(-1)


# -- turns ----------------------------------------------------------------------------------------


def slope_at(data, x, e):
    u, z, y = data.row(e)
    return np.float32(-y if y * (z @ x[u]) < 1 else 0)


def apply(data, x, e, slope, old, step):
    u, z, _ = data.row(e)
    x[u] = x[u] - np.float32(step) * (slope * z + data.shrink[u] * old[u])


def test_round_robin_applies_each_gradient_exactly_p_minus_1_writes_after_its_read():
    data, shares = Sparse.random(N, D), orders(N, WORKERS)
    x = data.zeros().reshape(-1)
    slopes = [slope_at(data, x, share[0]) for share in shares]
    for turn in range(N):
        rank, i = turn % WORKERS, turn // WORKERS
        apply(data, x, shares[rank][i], slopes[rank], x, GAMMA)
        if i + 1 < len(shares[rank]):
            slopes[rank] = slope_at(data, x, shares[rank][i + 1])
    assert_close(trained("round_robin"), x, CLASSIC_STEP_F32)


def test_sync_applies_the_mean_of_gradients_at_the_same_x():
    data, shares = Sparse.random(N, D), orders(N, WORKERS)
    x = data.zeros().reshape(-1)
    for i in range(len(shares[0])):
        old = x.copy()
        parts = [share[i] for share in shares if i < len(share)]
        slopes = [slope_at(data, old, e) for e in parts]
        for e, slope in zip(parts, slopes, strict=True):
            apply(data, x, e, slope, old, np.float32(GAMMA) / np.float32(len(parts)))
    assert_close(trained("sync"), x, CLASSIC_STEP_F32)


@pytest.mark.parametrize("kind", ["round_robin", "sync"])
def test_turns_with_mini_batches_give_the_same_bits_in_every_run(kind):
    np.testing.assert_array_equal(trained(kind, batch=4), trained(kind, batch=4))


def test_round_robin_with_free_reads_does_every_example():
    assert np.isfinite(trained("round_robin", ordered_reads=False)).all()


# -- nothing is lost ------------------------------------------------------------------------------

# Enough for milliseconds side by side, or nothing could be lost; turns tell by their order.
ADDS = dict.fromkeys(("racy", "lossless", "aig", "hot_cold"), 200_000) | {"round_robin": 500}
CELLS = 40


def counting_problem(segment, kind, rank):
    """Every example takes 1 from each of 20 of 40 cells, if the step is -1: no margin reaches 1."""
    rng = np.random.default_rng(rank)
    cells = np.sort([rng.choice(CELLS, 20, replace=False) for _ in range(50)], axis=1)
    indptr = np.arange(0, 1001, 20)
    problem = _native.LinearProblem(
        x_of(segment),
        indptr,
        cells.reshape(-1).astype(np.int32),
        np.ones(1000, np.float32),
        np.ones(50, np.float32),
        np.zeros(0, np.float32),
    )
    return problem, np.bincount(cells.reshape(-1), minlength=48) * (ADDS[kind] // 50)


def count_down(segment, kind, rank, options, together):
    problem, _ = counting_problem(segment, kind, rank)
    probe = x_of(segment).reshape(-1)[48:49]
    scheme = scheme_of(segment, kind, rank, WORKERS, probe=probe, **options)
    order = np.tile(np.arange(50, dtype=np.int32), ADDS[kind] // 50)
    together.wait(TIMEOUT_S)
    assert problem.run(scheme, order, -1.0) == ADDS[kind]


def counted(kind, **options):
    """What three workers counted down, the probe last, and what they should have."""
    with shared(BOARD_FLOATS + 64, 64, WORKERS) as segment:
        for rank in range(WORKERS):
            segment.locks(rank + 1)
        together = PROCESSES.Barrier(WORKERS)
        run(count_down, [(segment, kind, rank, options, together) for rank in range(WORKERS)])
        expected = sum(counting_problem(segment, kind, rank)[1] for rank in range(WORKERS))
        return x_of(segment).reshape(-1)[:49].copy(), expected


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lossless", {}), ("aig", {}), ("round_robin", {}), ("hot_cold", {"hot": 48, "period": 16})],
)
def test_no_update_is_lost(kind, options):
    cells, expected = counted(kind, **options)
    np.testing.assert_array_equal(-cells[:48], expected)
    if kind != "hot_cold":  # the probe is no coordinate of its head
        assert cells[48] == WORKERS * ADDS[kind]


def test_racy_updates_may_be_lost_but_none_is_torn_or_invented():
    cells, expected = counted("racy")
    np.testing.assert_array_equal(cells, np.rint(cells))
    assert (-cells[:48] <= expected).all()
    assert (-cells[:48] >= (expected > 0)).all()
    assert 0 < cells[48] <= WORKERS * ADDS["racy"]


# -- torn values ----------------------------------------------------------------------------------

A = 2_796_203.0  # 0x4a2aaaac; its multiples up to 6 are exact and share hardly a byte


def push_and_pull(segment, kind, rank):
    """Rows of one coordinate each: +1 pushes it up by A unless it is positive, -1 down."""
    problem = _native.LinearProblem(
        x_of(segment),
        np.arange(33),
        np.tile(np.arange(16, dtype=np.int32), 2),
        np.ones(32, np.float32),
        np.repeat(np.array([1, -1], np.float32), 16),
        np.zeros(0, np.float32),
    )
    scheme = scheme_of(segment, kind, rank, WORKERS)
    order = np.random.default_rng(rank).permutation(32).astype(np.int32)
    while problem.run(scheme, np.tile(order, 1000), A) == 32_000:
        pass


@pytest.mark.parametrize("kind", ["racy", "lossless", "aig"])
def test_readers_never_see_a_torn_value(kind):
    with shared(BOARD_FLOATS + 16, 16, WORKERS) as segment:
        for rank in range(WORKERS):
            segment.locks(rank + 1)
        board, x = board_of(segment, WORKERS), x_of(segment).reshape(-1)
        jobs = [(segment, kind, rank) for rank in range(WORKERS)]
        with spawned(push_and_pull, jobs) as processes:
            wait_until(lambda: all(board.examples(rank) > 0 for rank in range(WORKERS)))
            values = np.unique(np.concatenate([x.copy() for _ in range(20_000)]))
            board.stop()
            for process in processes:
                process.join(TIMEOUT_S)
                assert process.exitcode == 0
        assert len(values) > 1, "nobody wrote while we read"
        assert set(values) <= {k * A for k in range(-WORKERS, WORKERS + 1)}


# -- stops ----------------------------------------------------------------------------------------


def wait_until(done):
    deadline = time.monotonic() + TIMEOUT_S
    while not done():
        assert time.monotonic() < deadline, "the workers hang"
        os.sched_yield()


def wait_for_the_absent(segment, kind, rank):
    problem = Sparse.random(N, D).problem(x_of(segment))
    assert problem.run(scheme_of(segment, kind, rank, WORKERS), orders(N, 1)[0], GAMMA) < N


@pytest.mark.parametrize("kind", ["round_robin", "sync"])
def test_a_stop_ends_every_wait(kind):
    with shared(X_FLOATS, 64, WORKERS) as segment:
        board = board_of(segment, WORKERS)
        with spawned(wait_for_the_absent, [(segment, kind, rank) for rank in (1, 2)]) as processes:
            board.stop()
            for process in processes:
                process.join(TIMEOUT_S)
                assert process.exitcode == 0
        assert board.stopped
        board.reset()
        assert not board.stopped


# -- the board ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "racey"}, "no scheme 'racey'; choose from private, racy, lossless, hot_cold"),
        ({"rank": 2}, "rank 2 of 2 workers"),
        ({"words": np.zeros(256, np.uint8)}, "the board of 2 workers needs 512 bytes, got 256"),
        ({"kind": "aig"}, "scheme 'aig' needs locks"),
        ({"kind": "hot_cold"}, "scheme 'hot_cold' needs locks"),
        ({"probe": np.zeros(2, np.float32)}, "probe: wanted one float"),
    ],
)
def test_a_scheme_that_cannot_work_is_refused(change, message):
    with shared(BOARD_FLOATS) as segment:
        words = segment.floats.view(np.uint8)
        arguments = {
            "kind": "racy", "words": words, "locks": None, "row_word0": 0, "rank": 1, "workers": 2,
        }  # fmt: skip
        _native.ClassicScheme(**arguments)
        with pytest.raises(ValueError, match=message):
            _native.ClassicScheme(**(arguments | change))


def test_orders_and_rows_outside_the_problem_are_refused():
    with shared(X_FLOATS, 4) as segment:
        data = Sparse.random(N, D)
        problem = data.problem(x_of(segment))
        segment.locks(1)
        order = np.array([0, N], np.int32)
        with pytest.raises(ValueError, match=rf"order\[1\] is {N}; there are {N} examples"):
            problem.run(scheme_of(segment, "private", 0, 1), order, GAMMA)
        with pytest.raises(ValueError, match="13 rows from lock word 0 on do not fit 4 lock words"):
            problem.run(scheme_of(segment, "lossless", 0, 1), order[:1], GAMMA)
        with pytest.raises(ValueError, match="batch: wanted at least 1 example"):
            problem.run(scheme_of(segment, "private", 0, 1), order[:1], GAMMA, 0)
