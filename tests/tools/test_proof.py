"""Proofs: locks and ticket ledger keep their promises in every interleaving."""

import pytest

from tools.proof.protocols import NEEDED, build, search, sources


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_run_keeps_the_promises_and_no_needed_order_can_be_weaker(tmp_path):
    steps = sources(tmp_path)
    searched = list(search(build(tmp_path), steps))
    assert [one.problem for one in searched if one.problem] == []
    assert len(searched) == 17 + len(NEEDED)
