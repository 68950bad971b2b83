"""A launch covers its grid as Metal would: ragged groups, positions, sizes, arguments in place."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import MetalError, ShapeError
from mlxhog.metal.kernel import Launch
from tests.metal.host import probes
from tests.metal.host.probes import count, on
from tests.pairs import each_of


@each_of(
    ("grid", "group"),
    [((7, 5, 3), (4, 2, 2)), ((300, 1, 1), (256, 1, 1)), ((33, 2, 1), (33, 1, 1))],
)
def test_every_thread_knows_where_it_is_also_in_ragged_groups(shim, grid, group):
    n = grid[0] * grid[1] * grid[2]
    launch = Launch(
        kernel=probes.POSITIONS,
        inputs={"x": np.zeros(8, np.float32)},
        outputs={"out": (n, 24)},
        grid=grid,
        group=group,
    )
    out = shim.run(launch)["out"].astype(np.int64)

    at = np.stack(np.unravel_index(np.arange(n), grid[::-1])[::-1], axis=1)
    block, inside = at // group, at % group
    size = np.minimum(np.array(group), np.array(grid) - block * group)
    index = inside[:, 0] + size[:, 0] * (inside[:, 1] + size[:, 1] * inside[:, 2])
    same = np.ones_like(at)
    expected = np.concatenate(
        [
            *(at, inside, block, same * grid, same * -(-np.array(grid) // group)),
            *(size, same * group),
            np.stack([index, index % 32, index // 32], axis=1),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(out, expected)


def test_an_empty_grid_launches_nothing_and_returns_zeros(shim):
    x = np.zeros(8, np.float32)
    launch = replace(on(probes.GROUP_SUM, x), grid=(0, 1, 1))
    assert (shim.run(launch)["y"] == 0).all()


def test_a_group_of_more_than_1024_threads_is_refused(shim):
    with pytest.raises(MetalError, match=r"\(2048, 1, 1\) is 2048 threads; a GPU runs 1 to 1024"):
        shim.run(on(probes.GROUP_SUM, np.zeros(4096, np.float32), group=(2048, 1, 1)))


def test_a_read_only_array_cannot_be_written(shim):
    shared = np.zeros(16, np.float32)
    shared.flags.writeable = False
    with pytest.raises(ShapeError, match="shared is read-only; the kernel writes it in place"):
        shim.run(count(probes.ATOMIC_COUNT, shared, 16))
