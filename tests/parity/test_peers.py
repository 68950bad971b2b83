"""Packages of others as sides: each agrees with float64 at what it claims, or as its page says."""

import importlib
import re
from dataclasses import replace

import pytest

import mlxhog
from mlxhog.conformance.sides import peers
from mlxhog.conformance.sides.report import SidesReport, compare_cells
from mlxhog.conformance.vectors.export import EQUATIONS, make
from mlxhog.models.ops.eager.ops_float64 import one_thread
from tests.pairs import each_of
from tools import peers_page

SIDES = {side.name: (side, peer) for peer in peers.PEERS for side in peer.sides()}
OWN_PROCESS = "transformers alone"
UNSOUND = {"fla/naive_mesa_net_CG"}  # an approximation
CANNOT_RUN = "train_with_padding"  # of models


def of_cases(name, *cases):
    """The comparison of a peer on cases in this process."""
    side, _ = SIDES[name]
    module, _, function = side.function.partition(":")
    call = getattr(importlib.import_module(module), function)

    def here(case):
        return call(case, side.setting)

    inside = [replace(side, function=here, setting="", process="")]
    report = compare_cells("few", inside, cases, "float32", 60.0, lambda *_: None)
    assert isinstance(report, SidesReport)
    return report


@pytest.fixture(scope="module")
def usual():
    """A case of every equation that a peer computes."""
    names = dict.fromkeys(name for peer in peers.PEERS for name in peer.equations)
    with one_thread():
        return {name: make(EQUATIONS[name], "usual") for name in names}


@pytest.mark.slow
@each_of("name", [name for name, (_, peer) in SIDES.items() if peer.process != OWN_PROCESS])
def test_a_peer_agrees_with_float64_on_a_usual_case_of_its_equations(usual, name):
    side, peer = SIDES[name]
    report = of_cases(name, *(usual[one] for one in side.equations))
    is_model = peer.module == "peer_models_torch"
    assert report.ok == (name not in UNSOUND and not (is_model and CANNOT_RUN in name)), [
        (row.what, row.reason, row.tolerance_ratio) for row in report.rows if not row.ok
    ]


@pytest.mark.slow
def test_without_the_package_xlstm_transformers_runs_its_own_code():
    own = [side for side, peer in SIDES.values() if peer.process == OWN_PROCESS]
    names = [side.name for side in own if "mlstm" in side.equations]
    report = mlxhog.parity("mlstm", sides=names)
    assert {one.side.name for one in report.summaries} == {
        f"transformers/alone+{mode}" for mode in ("inference", "train", "train_with_padding")
    }
    assert report.ok, report.first_bad


@pytest.mark.slow
def test_a_peer_is_compared_at_what_it_claims(usual):
    name = "mlstm_kernels/chunkwise--native_custbw"
    side, peer = SIDES[name]
    assert peer.claim is peers.behind_norm
    assert of_cases(name, usual["mlstm"]).ok
    try:
        SIDES[name] = replace(side, claim=None), peer
        bare = of_cases(name, usual["mlstm"])
    finally:
        SIDES[name] = side, peer
    failed = {row.what for row in bare.rows if not row.ok}
    assert failed == {f"mlstm-usual/grad.{letter}" for letter in "qkif"}


@pytest.mark.slow
def test_nan_gradients_of_a_peer_are_found_and_the_arbiter_supports_the_other():
    with one_thread():
        gates = make(EQUATIONS["kda"], "gates")
    report = of_cases("fla/naive_chunk_kda", gates)
    failed = {row.what.partition("/")[2] for row in report.rows if not row.ok}
    assert failed == {"grad.q", "grad.k", "grad.log_decay", "grad.beta"}
    assert report.first_bad.reason == "not finite"
    assert of_cases("fla/naive_recurrent_kda", gates).ok


@pytest.mark.slow
@each_of("finding", peers_page.FINDINGS, ids=lambda finding: finding.title)
def test_a_finding_of_the_page_still_shows(finding):
    page = peers_page.PAGE.read_text("utf-8")
    title = f"### {finding.package}: {finding.title}\n"
    shown = page.partition(title)[2].partition("```\n\n```\n")[2].partition("```\n")[0]
    printed = finding.printed()
    assert shown
    assert re.sub(r"\d", "#", printed) == re.sub(r"\d", "#", shown)  # other machines round


def test_the_page_names_every_side():
    assert len(SIDES) == sum(len(peer.settings) for peer in peers.PEERS)
    page = peers_page.PAGE.read_text("utf-8")
    for side, _ in SIDES.values():
        for equations in side.equations:
            section = page.partition(f"\n## {equations}\n")[2].partition("\n## ")[0]
            assert f"| {side.name} |" in section.replace("\\", ""), (side.name, equations)
