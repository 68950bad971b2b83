"""Stages, sizes and statistics of `benchmarks/search_pays.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models.families import param_count
from mlxhog.models.mad.sequence import parse

Load = Callable[[str], ModuleType]


class Maker:
    """Makes pieces, and is killed before one of them."""

    def __init__(self, killed_at: str = "") -> None:
        self.made: list[str] = []
        self._killed_at = killed_at

    def __call__(self, piece: tuple[str, ...]) -> dict[str, Any]:
        if piece[1] == self._killed_at:
            raise KeyboardInterrupt
        self.made.append(piece[1])
        return {"value": len(piece[1])}


PIECES = [("probe", name) for name in ("a", "bb", "ccc")]


def test_a_finished_piece_is_never_made_again(load: Load, tmp_path: Path, capsys) -> None:
    Stages = load("mad.stages").Stages
    path = tmp_path / "runs.jsonl"
    killed, again = Maker("ccc"), Maker()
    with pytest.raises(KeyboardInterrupt):
        Stages(path, {"tokens": 1}).run(PIECES, killed)
    with path.open("ab") as file:
        file.write(b'{"piece": ["probe", "cc')  # torn by the kill
    stages = Stages(path, {"tokens": 1})
    assert ("probe", "ccc") not in stages
    stages.run(PIECES, again)
    assert (killed.made, again.made) == (["a", "bb"], ["ccc"])
    assert Stages(path, {"tokens": 1})[("probe", "ccc")] == {"value": 3}
    assert "to go" in capsys.readouterr().out


def test_other_settings_are_refused_with_both_of_them(load: Load, tmp_path: Path) -> None:
    Stages = load("mad.stages").Stages
    Stages(tmp_path / "runs.jsonl", {"tokens": 1, "seeds": [1, 2]})
    with pytest.raises(ConfigError, match="tokens: it has 1, this command 2") as refused:
        Stages(tmp_path / "runs.jsonl", {"tokens": 2, "seeds": (1, 2)})
    assert "seeds" not in str(refused.value)
    assert "another folder with --out" in str(refused.value)


def test_a_damaged_line_before_the_last_is_named(load: Load, tmp_path: Path) -> None:
    Stages = load("mad.stages").Stages
    path = tmp_path / "runs.jsonl"
    Stages(path, {}).run(PIECES, Maker())
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{torn", *lines[2:]]) + "\n")
    with pytest.raises(ConfigError, match=r"runs\.jsonl:2 is not JSON"):
        Stages(path, {})


@pytest.mark.parametrize("number", range(24))
def test_every_architecture_has_the_parameters_of_xlstm(load: Load, number: int) -> None:
    sizes, probes = load("mad.sizes"), load("mad.probes")
    params = param_count(sizes.xlstm(sizes.LONG))
    model = sizes.probe(list(probes.ARCHITECTURES)[number], sizes.LONG)
    assert abs(param_count(model) / params - 1) <= probes.TOLERANCE


def test_both_rivals_have_equal_parameters_and_an_impossible_number_is_refused(load: Load) -> None:
    sizes, probes = load("mad.sizes"), load("mad.probes")
    assert len(probes.ARCHITECTURES) == 24
    for scale in (sizes.LONG, sizes.QUICK):
        counts = [param_count(model) for model in sizes.rivals(scale).values()]
        assert max(counts) / min(counts) - 1 <= probes.TOLERANCE
    with pytest.raises(ConfigError, match="1,000 parameters within 2%"):
        probes.fitted(parse("mlstm swiglu"), 1000)


def test_the_interval_of_a_rank_correlation_covers_equal_and_unrelated_orders(load: Load) -> None:
    rank = load("mad.ranks").RankCorrelation
    values = list(range(24))
    equal = rank.of(values, [3 * one for one in values])
    assert equal.rho == equal.low == equal.high == pytest.approx(1)
    unrelated = rank.of(values, [(one - 11.5) ** 2 for one in values])
    assert unrelated.rho == pytest.approx(0)
    assert unrelated.low < 0 < unrelated.high


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((0.03, 0.04, 0.05), "better"), ((-0.03, -0.04, -0.05), "worse"), ((-0.1, 0.1), "cannot")],
)
def test_the_verdict_follows_from_the_interval(load: Load, gains, verdict: str) -> None:
    pays = load("search_pays")
    assert pays.verdict_of(load("harness.claims").Mean.of(gains)).startswith(verdict)


def test_one_seed_tells_nothing(load: Load) -> None:
    pays = load("search_pays")
    assert pays.verdict_of(load("harness.claims").Mean.of([0.5])) == pays.CANNOT
