"""Proofs: packed adds, locks and ticket ledger keep their promises in every interleaving."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest

from mlxhog import metal
from mlxhog.errors import MetalError
from tools import proof
from tools.proof import PROOFS, Proof, protocols, verify
from tools.proof.protocols import Searched, Weakened, build, problems, search, sources

needs_spin = pytest.mark.skipif(which("spin") is None, reason="no spin: apt-get install spin")


FEWER = {"TRIES=64": "TRIES=20", "TRIES=16": "TRIES=10", "TRIES=2": "TRIES=1"}


def with_fewer_tries(claim):
    """A claim with fewer tries than `python -m tools.proof` searches; 3 is the model's default."""
    fewer = tuple(FEWER.get(option, option) for option in claim.options)
    return replace(claim, options=fewer or ("TRIES=2",))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of the search of the protocols and of each claim, a search on every core."""
    folder = tmp_path_factory.mktemp("protocols")
    steps = sources(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            "protocols": pool.submit(lambda: list(search(build(folder), steps))),
            **{one.claim: pool.submit(verify, with_fewer_tries(one)) for one in PROOFS},
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@needs_spin
@pytest.mark.parametrize("claim", PROOFS, ids=lambda claim: claim.claim)
def test_a_claim_holds_in_every_run_and_a_planted_fault_is_found(claim, results):
    verdict = results[claim.claim].result()
    print(f"{claim.claim}: {verdict}")
    assert verdict.holds == claim.holds
    if claim.holds:
        assert verdict.states > 10_000
    else:
        expected = "non-progress cycle" if claim.endless else "assertion violated"
        assert expected in verdict.counterexample


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


@pytest.mark.slow
def test_every_run_keeps_the_promises_and_no_needed_order_can_be_weaker(results):
    searched = results["protocols"].result()
    for result in searched:
        print(result)
    assert problems(searched) == []
    assert sum(isinstance(result, Searched) for result in searched) == 16


def test_a_table_that_the_search_contradicts_is_told():
    needed = next(iter(protocols.NEEDED))
    results = [
        Searched("laps", "every ticket once", 7, "a ticket is lost"),
        Weakened(needed, "", ""),
    ]
    text = "\n".join(problems(results))
    assert "laps: a ticket is lost" in text
    assert f"{needed} may be weaker" in text
    assert "no such step is left" in text


def test_a_source_that_lost_a_named_step_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(protocols._SITES, "__atomic_load_n(&owner.gone", "gone")
    with pytest.raises(MetalError, match="of the steps"):
        sources(tmp_path)
    monkeypatch.setitem(protocols._LIMITS, "kSpins = 257;", "kSpins = 1;")
    with pytest.raises(MetalError, match="kSpins = 257"):
        sources(tmp_path)


@pytest.mark.slow
def test_a_search_that_does_not_compile_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(protocols, "_HERE", tmp_path)
    for name in ("hooks.h", "ledger.cpp", "search.cpp", "scenarios.cpp", "main.cpp"):
        (tmp_path / name).touch()
    (tmp_path / "locks.cpp").write_text("no code")
    with pytest.raises(MetalError, match="does not compile"):
        build(tmp_path)
