"""Which locks a step takes: all of a dead worker's, so that each one taken is counted and freed."""

import numpy as np

from mlxhog import _native
from tests.metal.shared import WORKER
from tests.pairs import each_of
from tests.research.classic.native import WIDTH, Sparse, aligned_bytes
from tests.research.classic.pair_problems import Factors, Tangle

SPARSE, FACTORS = Sparse.random(), Factors.random()
EXAMPLES = (3, 17, 50)


def rows_locked(kind, problem, example, n_words, **options):
    """Rows that were taken over from the dead worker, and given free, by a step on one example."""
    table = aligned_bytes(2 * WORKER.itemsize)
    entries = table.view(WORKER)
    entries["generation"] = 1
    entries["dead"][1] = 1
    words = np.full(n_words, 2 | 1 << 16, np.uint32)
    locks = _native.Locks(words, table, 1, 1)
    board = aligned_bytes(_native.ClassicBoard.bytes(1))
    strategy = _native.ClassicScheme(kind, board, locks, 0, 0, 1, **options)
    assert problem.run(strategy, np.array([example], np.int32), 0.1) == 1
    freed = set(np.flatnonzero(words == 0).tolist())
    assert locks.takeovers == len(freed), "a row was unlocked that had not been locked"
    return freed


@each_of("example", EXAMPLES)
def test_aig_locks_the_lines_of_all_coordinates_of_the_example_and_no_others(example):
    x = SPARSE.zeros()
    u, _, _ = SPARSE.row(example)
    locked = rows_locked("aig", SPARSE.problem(x), example, len(x))
    assert locked == set((u // WIDTH).tolist())


def test_a_merge_of_the_hot_head_locks_the_first_line_of_each_4_kib():
    rows = Sparse.random(d=3000)
    x = rows.zeros()
    locked = rows_locked("hot_cold", rows.problem(x), 3, len(x), hot=2500)
    assert locked == {0, 64, 128}


@each_of("kind", ["lossless", "aig"])
@each_of("example", EXAMPLES)
def test_a_rating_locks_its_user_and_its_item(example, kind):
    left, right = FACTORS.left.copy(), FACTORS.right.copy()
    user, item, _ = FACTORS.ratings[example]
    locked = rows_locked(kind, FACTORS.problem(left, right), example, len(left) + len(right))
    assert locked == {user, len(left) + item}


@each_of(("kind", "labels"), [("lossless", 3), ("aig", 3), ("aig", 2)])
@each_of("example", EXAMPLES)
def test_an_edge_locks_those_of_its_ends_that_may_move(example, kind, labels):
    tangle = Tangle.random(labels=labels)
    x = tangle.x.copy()
    head, tail, _ = tangle.edges[example]
    locked = rows_locked(kind, tangle.problem(x), example, len(x))
    assert locked == {end for end in (head, tail) if not tangle.fixed[end]}
