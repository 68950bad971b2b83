"""What a step costs on a Mac follows from source and shapes; what MLX dispatches may not rise."""

import json
import re
from pathlib import Path

import pytest

from tools import counts

PAGE = Path(__file__).parents[2] / "docs/apple.md"


def test_a_gpu_that_orthogonalises_waits_for_the_cpu_for_at_most_a_fifth_of_a_step():
    gflop = {name: round(counts.muon_gflop(name)) for name in counts.MODELS}
    assert gflop == {"10m": 24, "30m": 111, "60m": 286, "160m": 493}
    assert all(counts.cpu_share(name, None) <= 0.2 for name in counts.MODELS)
    products = (*counts.CPU_GFLOP_S, None)
    shares = [f"{100 * counts.cpu_share('10m', product):.0f} %" for product in products]
    (line,) = [line for line in PAGE.read_text().splitlines() if "`python -m tools.counts`" in line]
    assert re.findall(r"\d+ %", line) == shares, "python -m tools.counts"


@pytest.mark.slow
def test_no_step_and_no_block_dispatches_more_than_recorded():
    """After a change that is worth more: python -m tools.counts graphs."""
    recorded, now = json.loads(counts.RECORD.read_text()), counts.graphs()
    assert now.keys() == recorded.keys()
    assert {name: n for name, n in now.items() if n > recorded[name]} == {}
    assert now["160m"] <= 1500
