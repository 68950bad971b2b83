"""MLX operations never write into imported memory: the arena changes by our kernels alone."""

import sys

import pytest

from mlxhog.arena import Arena, plan
from tests.backends import imported_children as children
from tests.forked import CONTEXT

pytest.importorskip("mlx.core")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="on macOS MLX itself imports memory; see mlxhog doctor"
)
WAIT_S = 60.0


def answer(target, *arguments):
    """What another process says of an arena."""
    ours, theirs = CONTEXT.Pipe()
    with Arena.create(plan({}, n_tickets=1)) as arena:
        process = CONTEXT.Process(target=target, args=(arena.handle(), theirs, *arguments))
        process.start()
        theirs.close()
        assert ours.poll(WAIT_S)
        reply = ours.recv()
        process.join(WAIT_S)
    assert process.exitcode == 0
    return reply


@pytest.mark.slow
def test_the_fixture_is_one_memory_seen_from_both_sides():
    assert answer(children.write_to_imported) == (7.0, 8.0)


def test_mlx_operations_never_write_into_imported_memory():
    visible, results, own_pages = answer(children.run, list(children.OPERATIONS))
    assert visible, "MLX sees what the host wrote"
    assert results.keys() == children.OPERATIONS.keys()
    for name, (changed, arena_kept) in results.items():
        assert changed, f"{name} computed nothing new"
        assert arena_kept, f"{name} wrote into the arena"
    assert own_pages, "a new array was given the arena's pages"


def test_the_check_would_notice_a_write():
    assert answer(children.add_to_the_only_reference) is True
