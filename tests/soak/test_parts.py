"""Every soak with n = 1: kills, feeds, replays, gates, repeats, damage, interrupts, a cluster."""

import pytest

from tests.soak import PARTS, part


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PARTS)
def test_nothing_is_lost_hangs_or_stays_behind(name):
    if name == "cluster":
        pytest.importorskip("torchft")
    counts = part(name)(1, print)
    assert not counts.failures, counts.facts
