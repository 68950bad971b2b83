"""What the strategies promise with several workers: who sees whose writes, what is never lost."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.research.classic.problem import pack_pairs
from tests.metal.shared import PROCESSES, TIMEOUT_S, run, shared, spawned
from tests.pairs import each_of
from tests.research.classic import native
from tests.research.classic.native import (
    BOARD_FLOATS,
    WIDTH,
    Sparse,
    board_of,
    orders,
    scheme_of,
    x_of,
)
from tests.threads import wait_until
from tests.tolerances import CLASSIC_STEP_F32, assert_close

N, D, WORKERS = 91, 200, 3  # shares of 31, 30 and 30 examples
GAMMA = 0.2
X_FLOATS = BOARD_FLOATS + -(-D // WIDTH) * WIDTH


def train_share(segment, kind, rank):
    """One worker of a run on `Sparse.random(N, D)`."""
    problem, share = Sparse.random(N, D).problem(x_of(segment)), orders(N, WORKERS)[rank]
    assert problem.run(scheme_of(segment, kind, rank, WORKERS), share, GAMMA) == len(share)


def trained(kind):
    """x after a run of three processes."""
    with shared(X_FLOATS, 64, WORKERS) as segment:
        for rank in range(WORKERS):
            segment.locks(rank + 1)
        run(train_share, [(segment, kind, rank) for rank in range(WORKERS)])
        assert not segment.words.any(), "a lock is still taken"
        examples = [board_of(segment, WORKERS).examples(rank) for rank in range(WORKERS)]
        assert examples == [len(share) for share in orders(N, WORKERS)]
        return x_of(segment).copy().reshape(-1)


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


# Enough for milliseconds side by side, or nothing could be lost; turns tell by their order.
ADDS = dict.fromkeys(("lossless", "aig", "hot_cold"), 60_000) | {"round_robin": 500}
CELLS = 40


def floats_of(segment):
    return segment.floats[BOARD_FLOATS:]


def cells_of(rank):
    """20 of 40 cells for each of 50 examples."""
    rng = np.random.default_rng(rank)
    return np.sort([rng.choice(CELLS, 20, replace=False) for _ in range(50)], axis=1)


def rows(segment, kind, rank):
    """Every example takes 1 from each of its cells, if the step is -1: no margin reaches 1."""
    x, cells = floats_of(segment)[:64].reshape(-1, WIDTH), cells_of(rank).reshape(-1)
    problem = native.linear(x, np.arange(0, 1001, 20), cells, np.ones(1000), np.ones(50))
    return problem, np.tile(np.arange(50, dtype=np.int32), ADDS[kind] // 50), -1.0


def edges(segment, kind, rank):
    """Vertex 0, and terminals of label 0 that each pull it by 2^-20, which is exact."""
    n = WORKERS * ADDS[kind] + 1
    x = floats_of(segment)[:n].reshape(n, 1)
    ends = np.arange(1, n, dtype=np.int32)
    fixed = (np.arange(n) > 0).astype(np.uint8)
    if rank is None:
        x[:, 0] = fixed
    pairs = pack_pairs(np.zeros_like(ends), ends, np.full(n - 1, 2.0**-20))
    share = np.array_split(ends - 1, WORKERS)[rank or 0]
    return _native.CutProblem(x, pairs, fixed), share, 1.0


def count(segment, make, kind, rank, options, together):
    problem, order, gamma = make(segment, kind, rank)
    if make is rows:
        options = options | {"probe": floats_of(segment)[48:49]}
    strategy = scheme_of(segment, kind, rank, WORKERS, **options)
    together.wait(TIMEOUT_S)
    assert problem.run(strategy, order, gamma) == len(order)


def counted(make, kind, options):
    """The shared floats after three workers have counted."""
    n = WORKERS * ADDS[kind] + 1
    with shared(BOARD_FLOATS + n, n, WORKERS) as segment:
        for rank in range(WORKERS):
            segment.locks(rank + 1)
        if make is edges:
            make(segment, kind, None)
        together = PROCESSES.Barrier(WORKERS)
        run(count, [(segment, make, kind, rank, options, together) for rank in range(WORKERS)])
        assert not segment.words.any(), "a lock is still taken"
        return floats_of(segment)[:64].copy()


@each_of(  # rows of several floats: tests/research/classic/test_row_locks.py
    ("make", "kind"),
    [
        (rows, "lossless"), (rows, "aig"), (rows, "round_robin"), (rows, "hot_cold"),
        (edges, "lossless"), (edges, "round_robin"),
    ],
)  # fmt: skip
def test_no_update_is_lost(make, kind):
    floats = counted(make, kind, {"hot": 48, "period": 16} if kind == "hot_cold" else {})
    if make is edges:
        assert floats[0] == WORKERS * ADDS[kind] * 2.0**-20
        return
    cells = np.concatenate([cells_of(rank).reshape(-1) for rank in range(WORKERS)])
    times = np.bincount(cells, minlength=48) * (ADDS[kind] // 50)
    np.testing.assert_array_equal(floats[:48], -times)
    if kind != "hot_cold":  # the probe is no coordinate of its head
        assert floats[48] == WORKERS * ADDS[kind]


A = 87_381.0  # 0x47aaaa80; its multiples up to 192 are exact, and neighbours share hardly a byte


def push_and_pull(segment, kind, rank):
    """Rows of one coordinate each: +1 pushes it up by A unless it is positive, -1 down."""
    columns, labels = np.tile(np.arange(16), 2), np.repeat([1, -1], 16)
    problem = native.linear(x_of(segment), np.arange(33), columns, np.ones(32), labels)
    strategy = scheme_of(segment, kind, rank, WORKERS)
    order = np.random.default_rng(rank).permutation(32).astype(np.int32)
    while problem.run(strategy, np.tile(order, 1000), A) == 32_000:
        pass


@pytest.mark.parametrize("kind", ["racy", "lossless", "aig"])
def test_readers_never_see_a_torn_value(kind):
    with shared(BOARD_FLOATS + 16, 16, WORKERS) as segment:
        for rank in range(WORKERS):
            segment.locks(rank + 1)
        board, x = board_of(segment, WORKERS), x_of(segment).reshape(-1)
        jobs = [(segment, kind, rank) for rank in range(WORKERS)]
        values = set()

        def all_wrote_while_we_read():
            before = [board.examples(rank) for rank in range(WORKERS)]
            for _ in range(20_000):
                values.update(x.tolist())
            return all(board.examples(rank) > before[rank] for rank in range(WORKERS))

        with spawned(push_and_pull, jobs) as processes:
            wait_until(all_wrote_while_we_read)
            board.stop()
            for process in processes:
                process.join(TIMEOUT_S)
                assert process.exitcode == 0
        assert len(values) > 1
        # A racy worker may write an old sum back, so that sums grow beyond the number of workers,
        # by as much again as often as workers are interrupted between a read and its write.
        most = 192 if kind == "racy" else WORKERS
        assert values <= {k * A for k in range(-most, most + 1)}


def wait_for_the_absent(segment, kind, rank):
    problem = Sparse.random(N, D).problem(x_of(segment))
    assert problem.run(scheme_of(segment, kind, rank, WORKERS), orders(N, 1)[0], GAMMA) < N


@pytest.mark.parametrize("kind", ["round_robin", "sync"])
def test_a_stop_ends_every_wait(kind):
    with shared(X_FLOATS, 64, WORKERS) as segment:
        board = board_of(segment, WORKERS)
        lines = segment.floats[:BOARD_FLOATS].view(np.uint64).reshape(-1, 16)  # see board.h
        with spawned(wait_for_the_absent, [(segment, kind, rank) for rank in (1, 2)]) as processes:
            wait_until(lambda: lines[3:5, 1].all())  # both have read a gradient, and wait
            board.stop()
            for process in processes:
                process.join(TIMEOUT_S)
                assert process.exitcode == 0
        assert board.stopped
        board.reset()
        assert not board.stopped


def test_orders_and_rows_outside_the_problem_are_refused():
    order = np.array([0, N], np.int32)
    with shared(X_FLOATS, 4) as segment:
        problem = Sparse.random(N, D).problem(x_of(segment))
        segment.locks(1)
        for kind, examples, message in (
            ("private", order, rf"order\[1\] is {N}; there are {N} examples"),
            ("lossless", order[:1], "13 rows from lock word 0 on do not fit"),
        ):
            with pytest.raises(ValueError, match=message):
                problem.run(scheme_of(segment, kind, 0, 1), examples, GAMMA)
