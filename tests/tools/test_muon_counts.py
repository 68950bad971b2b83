"""What Muon costs on a Mac is arithmetic on shapes and rates, and docs/apple.md has its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import muon_counts

PAGE = Path(__file__).parents[2] / "docs/apple.md"


def test_the_operations_are_those_of_the_shapes() -> None:
    counts = {name: round(muon_counts.muon_gflop(name)) for name in muon_counts.MODELS}
    assert counts == {"10m": 24, "30m": 111, "60m": 286, "160m": 493}


def test_a_gpu_that_orthogonalises_waits_for_the_cpu_for_at_most_a_fifth_of_a_step() -> None:
    for name in muon_counts.MODELS:
        assert muon_counts.cpu_share(name, None) <= 0.2
    assert muon_counts.cpu_share("10m", "our own product") > 0.85
    assert muon_counts.cpu_share("10m", "Accelerate") == pytest.approx(0.5, abs=0.15)


def test_the_page_has_the_table_of_the_tool() -> None:
    assert muon_counts.table() in PAGE.read_text(), "copy python -m tools.muon_counts there"
