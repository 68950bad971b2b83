"""An arena without parameters."""

import pytest

from mlxhog.arena import Arena, plan


@pytest.fixture
def arena():
    with Arena.create(plan({}, max_workers=3, n_tickets=1)) as arena:
        yield arena
