"""Every soak with n = 1: kills, feeds, replays, gates, repeats, damage, interrupts, a cluster."""

import pytest

from tests.soak import PARTS, part


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PARTS)
def test_nothing_is_lost_hangs_or_stays_behind(name, request):
    if name == "cluster":
        pytest.importorskip("torchft")
    if name == "replays":  # of runs of the default model
        request.getfixturevalue("prepared_sotu")
    counts = part(name)(1, print)
    assert not counts.failures, counts.facts
