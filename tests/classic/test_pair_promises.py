"""What several workers keep on problems of pairs: no update lost, rows whole, a death survived."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.classic.problem import pack_pairs
from tests.classic.native import BOARD_FLOATS, scheme_of
from tests.metal.shared import PROCESSES, TIMEOUT_S, run, shared

WORKERS = 3
# Enough for milliseconds side by side, or nothing could be lost. Turns cost a change of hands each,
# and one worker in three has no core.
ADDS = {"racy": 200_000, "lossless": 200_000, "aig": 200_000, "round_robin": 500}
LOSSLESS = ("lossless", "aig", "round_robin")


def share_of(rank, adds):
    return np.arange(rank * adds, (rank + 1) * adds, dtype=np.int32)


def floats_of(segment):
    return segment.floats[BOARD_FLOATS:]


def prepare(segment):
    for rank in range(WORKERS):
        segment.locks(rank + 1)


# -- nothing is lost ------------------------------------------------------------------------------


def rate(segment, kind, rank, together):
    """Each of the worker's users rates item 0 once, and so adds 1 to its first column.

    A user's row is 2^-30 long and the rating -2^29: the product of the rows is lost in the error,
    which stays 2^29, and 2 * 2^29 * 2^-30 is 1.
    """
    n = WORKERS * ADDS[kind]
    users = np.zeros((n, 16), np.float32)
    users[:, 0] = -(2.0**-30)
    everyone = np.arange(n, dtype=np.int32)
    problem = _native.CompletionProblem(
        users,
        floats_of(segment).reshape(1, 16),
        pack_pairs(everyone, np.zeros_like(everyone), np.full(n, -(2.0**29))),
        np.zeros(n, np.float32),
        np.zeros(1, np.float32),
        user_word0=1,
    )
    share = share_of(rank, ADDS[kind])
    together.wait(TIMEOUT_S)
    assert problem.run(scheme_of(segment, kind, rank, WORKERS), share, 1.0) == len(share)


def rated(kind):
    with shared(BOARD_FLOATS + 16, 1 + WORKERS * ADDS[kind], WORKERS) as segment:
        prepare(segment)
        together = PROCESSES.Barrier(WORKERS)
        run(rate, [(segment, kind, rank, together) for rank in range(WORKERS)])
        assert not segment.words.any(), "a lock is still taken"
        item = floats_of(segment)[:16].copy()
    assert not item[1:].any()
    return float(item[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSLESS)
def test_no_rating_is_lost(kind):
    assert rated(kind) == WORKERS * ADDS[kind]


def test_racy_ratings_may_be_lost_but_none_is_torn_or_invented():
    value = rated("racy")
    assert value == int(value)
    assert 0 < value <= WORKERS * ADDS["racy"]


def star(segment, kind, labels):
    """Vertex 0, and terminals of label 0 that each pull it by 2^-20, which is exact."""
    n, width = WORKERS * ADDS[kind] + 1, 1 if labels == 2 else labels
    x = floats_of(segment)[: n * width].reshape(n, width)
    fixed = np.ones(n, np.uint8)
    fixed[0] = 0
    ends = np.arange(1, n, dtype=np.int32)
    edges = pack_pairs(np.zeros_like(ends), ends, np.full(n - 1, 2.0**-20))
    return _native.CutProblem(x, edges, fixed), x


def pull(segment, kind, rank, labels, together):
    problem, _ = star(segment, kind, labels)
    share = share_of(rank, ADDS[kind])
    together.wait(TIMEOUT_S)
    assert problem.run(scheme_of(segment, kind, rank, WORKERS), share, 1.0) == len(share)


def pulled(kind, labels):
    n = WORKERS * ADDS[kind] + 1
    with shared(BOARD_FLOATS + n * labels, n, WORKERS) as segment:
        prepare(segment)
        _, x = star(segment, kind, labels)
        x[1:, 0] = 1
        x[0, -1] = labels > 2  # at another label; as one scalar, 0
        together = PROCESSES.Barrier(WORKERS)
        run(pull, [(segment, kind, rank, labels, together) for rank in range(WORKERS)])
        assert not segment.words.any(), "a lock is still taken"
        return x[0].copy()


@pytest.mark.parametrize(
    ("labels", "kind"), [(2, "lossless"), (2, "round_robin"), (3, "lossless"), (3, "aig")]
)
def test_no_pull_of_an_edge_is_lost(labels, kind):
    moved = WORKERS * ADDS[kind] * 2.0**-20
    expected = [moved] if labels == 2 else [moved, 0, 1 - moved]
    np.testing.assert_array_equal(pulled(kind, labels), expected)
