"""What MLX dispatches may not rise."""

import json

import pytest

from tools import counts


@pytest.mark.slow
def test_no_step_and_no_block_dispatches_more_than_recorded():
    """After a change that is worth more: python -m tools.counts."""
    recorded, now = json.loads(counts.RECORD.read_text()), counts.graphs()
    assert now.keys() == recorded.keys()
    assert {name: n for name, n in now.items() if n > recorded[name]} == {}
    assert now["160m"] <= 1500
