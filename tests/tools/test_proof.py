"""Proofs: locks and ticket ledger keep their promises in every interleaving."""

import pytest

from mlxhog.errors import MetalError
from tools.proof import protocols
from tools.proof.protocols import build, search, sources


@pytest.mark.slow
def test_every_run_keeps_the_promises_and_no_needed_order_can_be_weaker(tmp_path):
    steps = sources(tmp_path)
    searched = list(search(build(tmp_path), steps))
    assert [one.problem for one in searched if one.problem] == []
    assert len(searched) == 16 + len(protocols.NEEDED)


def test_a_source_that_lost_a_named_step_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(protocols._SITES, "__atomic_load_n(&owner.gone", "gone")
    with pytest.raises(MetalError, match="of the steps"):
        sources(tmp_path)
    monkeypatch.setitem(protocols._LIMITS, "kSpins = 257;", "kSpins = 1;")
    with pytest.raises(MetalError, match="kSpins = 257"):
        sources(tmp_path)
