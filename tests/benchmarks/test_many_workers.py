"""Searches in parallel, and mixed backends: their verdicts follow from pairs, and can be missed."""

from __future__ import annotations

from typing import Any

import pytest


def ends(load: Any, outcome: Any) -> tuple[list[str], list[str]]:
    """How the claims of the documents and the limits of our own ended."""
    corrected = load("experiment.record").together_corrected(outcome)
    return [one.verdict for one in corrected.compared], [one.ended for one in corrected.claims]


@pytest.mark.parametrize(
    ("n_cores", "gain", "verdict", "ended"),
    [
        (2, 1.0, "cannot be told here", ["missed", "met"]),
        (2, 1.99, "cannot be told here", ["met", "met"]),
        (16, 1.99, "does not hold", ["missed", "missed"]),
        (16, 12.0, "holds", ["missed", "missed"]),
    ],
)
def test_a_search_on_all_cores_is_compared_with_a_serial_one_in_pairs(
    load: Any,
    monkeypatch: pytest.MonkeyPatch,
    n_cores: int,
    gain: float,
    verdict: str,
    ended: list[str],
) -> None:
    search = load("architecture_search")
    monkeypatch.setattr(search, "cores", lambda: list(range(n_cores)))
    parallel = [search.Search(s, s - 2.0) for s in (10.0, 10.01, 9.99)]
    serial = [search.Search(gain * s, 2 * (s - 2.0)) for s in (10.01, 10.0, 9.99)]
    searches = {search.SERIAL: serial, search.PARALLEL: parallel}
    scores = [{"a": 0.5}, {"a": 0.5}]
    compared, claims = ends(load, search.outcome(searches, parallel, scores, [0.1], {}))
    assert (compared, claims[:3]) == ([verdict], [*ended, "met"])
    other = [{"a": 0.5}, {"a": 0.5001}]
    assert ends(load, search.outcome(searches, parallel, other, [0.1], {}))[1][2] == "missed"


@pytest.mark.parametrize(
    ("bits", "verdict"),
    [
        ([2.0, 2.001, 1.999], "holds"),
        ([2.2, 2.201, 2.199], "does not hold"),
        ([2.0, 2.2, 1.9], "cannot be told here"),
    ],
)
def test_a_mix_converges_as_both_backends_alone_only_within_the_tie(
    load: Any, bits: list[float], verdict: str
) -> None:
    mixed = load("mixed_backends")
    alone = [2.0, 2.0005, 1.9995]
    of_arm = {(mixed.TORCH, 8): alone, (mixed.MLX, 8): alone, (mixed.BOTH, 8): bits}
    compared = load("experiment.record").Compared.of("same", *mixed._same_convergence(of_arm))
    assert compared.verdict == verdict


def test_half_of_the_processes_of_a_mix_are_of_each_backend(load: Any) -> None:
    mixed = load("mixed_backends")
    arms = mixed.arms(load("experiment.record").Scale("full"))
    assert [mixed.mix(mixed.BOTH, count) for count in (2, 8, 16)] == [
        "mlx:cpu,torch:cpu", "mlx:cpu*4,torch:cpu*4", "mlx:cpu*8,torch:cpu*8",
    ]  # fmt: skip
    assert {count for kind, count in arms if kind == mixed.BOTH} == {2, 8, 16}
