"""How an experiment is written down: claims beside measurements, and what a busy machine voids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def experiment(load: Any) -> Any:
    return load("experiment.record")


def about(experiment: Any) -> Any:
    return experiment.Experiment(
        name="falling", title="How apples fall", source="document 9, Test 1", about="We drop one."
    )


def draw(experiment: Any) -> Any:
    def one_line(outcome: Any) -> Any:
        figure, axes = experiment.new_panel(x="seconds", y="metres", heading="Falling")
        axes.plot([0, 1], [0, outcome.results["metres"].median], color=experiment.INKS[0])
        return figure

    return one_line


def outcome(experiment: Any, *, limit: float = 5.0) -> Any:
    return experiment.Outcome(
        compared=[
            experiment.Compared("it falls", "it fell", experiment.HOLDS, timing=False),
            experiment.Compared("it is fast", "it took 1 s", experiment.FAILS),
        ],
        table=[{"apple": "red", "metres": 4.905}],
        claims=[experiment.Claim("metres in a second", 4.905, "<=", limit, timing=False)],
        settings={"g": 9.81},
        results={"metres": experiment.Sample.of([4.9, 4.905, 4.91])},
    )


def test_a_result_holds_everything_a_second_person_needs(experiment: Any, tmp_path: Path) -> None:
    answer = outcome(experiment)
    code = experiment.run(
        about(experiment),
        lambda _: answer,
        draw(experiment),
        arguments=["--tiny", "--out", str(tmp_path)],
    )
    assert code == 0
    document = json.loads((tmp_path / "falling.json").read_text())
    assert document["command"] == "python benchmarks/experiments/falling.py --tiny"
    assert document["compared"][0]["verdict"] == experiment.HOLDS
    assert document["results"]["metres"]["median"] == 4.905
    assert {"machine", "versions", "commit", "others_load", "seeds", "settings"} <= document.keys()
    assert (tmp_path / document["figure"]).read_bytes().startswith(b"\x89PNG")


def test_a_missed_limit_ends_with_1(experiment: Any, tmp_path: Path) -> None:
    arguments = ["--tiny", "--out", str(tmp_path)]
    answer = outcome(experiment, limit=1.0)
    code = experiment.run(
        about(experiment), lambda _: answer, draw(experiment), arguments=arguments
    )
    assert code == 1


@pytest.mark.parametrize(
    ("others_load", "fast", "falls"),
    [(0.0, "does not hold", "holds"), (0.5, "cannot be told here", "holds")],
)
def test_a_busy_machine_leaves_no_verdict_on_times_and_keeps_the_others(
    experiment: Any, others_load: float, fast: str, falls: str
) -> None:
    scale = experiment.Scale("quick")
    document = experiment._document(
        about(experiment), scale, outcome(experiment), others_load, seconds=1.0
    )
    verdicts = {one["claim"]: one["verdict"] for one in document["compared"]}
    assert verdicts == {"it falls": falls, "it is fast": fast}


def test_full_repeats_with_three_seeds_and_quick_with_one(experiment: Any) -> None:
    assert len(experiment.Scale("full").seeds) == 3
    assert len(experiment.Scale("quick").seeds) == 1


def test_settings_that_were_never_searched_are_asked_for_by_name(experiment: Any) -> None:
    with pytest.raises(SystemExit, match=r"falling.py --tune"):
        experiment.recorded("falling")
