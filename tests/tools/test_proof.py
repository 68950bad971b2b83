"""The packed 16-bit add loses nothing and ends, in every interleaving of a few threads."""

from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest

from mlxhog import metal
from mlxhog.errors import MetalError
from tools import proof
from tools.proof import PROOFS, Proof, verify

needs_spin = pytest.mark.skipif(which("spin") is None, reason="no spin: apt-get install spin")


FEWER = {"TRIES=64": "TRIES=20", "TRIES=16": "TRIES=10", "TRIES=2": "TRIES=1"}


@pytest.mark.slow
@needs_spin
@pytest.mark.parametrize("claim", PROOFS, ids=lambda claim: claim.claim)
def test_a_claim_holds_in_every_run_and_a_planted_fault_is_found(claim):
    """With fewer tries than `python -m tools.proof` searches."""
    options = tuple(FEWER.get(option, option) for option in claim.options)
    verdict = verify(replace(claim, options=options))
    print(f"{claim.claim}: {verdict}")
    assert verdict.holds == claim.holds
    if claim.holds:
        assert verdict.states > 10_000
    else:
        wanted = "non-progress cycle" if claim.endless else "assertion violated"
        assert wanted in verdict.counterexample


@needs_spin
def test_a_search_that_cannot_run_is_an_error_and_no_verdict():
    with pytest.raises(MetalError, match="TRIES"):
        verify(Proof(claim="a limit that is no number", options=("TRIES=)",)))


@pytest.mark.parametrize(
    "line",
    [
        "load_bits(word)",
        "k < kMost",
        "kMost = kTries",
        "swap_bits(word, seen,",
        "count(failures, 1u)",
        "kTries = 64",
        "atomic_load_explicit",
        "atomic_compare_exchange_weak_explicit",
        "atomic_fetch_add_explicit",
    ],
)
def test_the_model_quotes_lines_that_the_source_has(line):
    folder = Path(proof.__file__).parent
    kernels = Path(metal.__file__).parent / "kernels"
    source = "".join((kernels / name).read_text() for name in ("atomics.h", "packed16.h"))
    assert line in source
    assert line in (folder / "packed16_add.pml").read_text()
