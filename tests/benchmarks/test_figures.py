"""Figures of experiments: one color for a scheme, names beside the lines, every repeat shown."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def figures(load: Any) -> Any:
    return load("experiment.figures")


def test_a_scheme_has_one_color_whatever_stands_beside_it(figures: Any) -> None:
    first = figures.inks(["serial", "hogwild, plain", "gradients averaged (sync)", "a gate"])
    second = figures.inks(["Muon averaged", "4 lock-free workers", "Serial, 1 thread"])
    assert first["serial"] == second["Serial, 1 thread"]
    assert first["hogwild, plain"] == second["4 lock-free workers"]
    assert first["gradients averaged (sync)"] == second["Muon averaged"]
    assert len(set(first.values())) == 4
    assert figures.inks(["sync by speed"]) != figures.inks(["sync"])


def test_lines_have_their_names_at_their_ends_and_none_covers_another(figures: Any) -> None:
    figure, axes = figures.new_panel(x="steps", y="loss")
    figures.curves(axes, {"sync": ([0, 1], [3, 1.0]), "hogwild": ([0, 1], [3, 1.001])})
    labels = {text.get_text(): text.xyann[1] + text.xy[1] for text in axes.texts}
    assert set(labels) == {"sync", "hogwild"}
    assert abs(labels["hogwild"] - labels["sync"]) > figures.LINE_POINTS / 2
    figure.canvas.draw()


def test_every_repeat_and_the_interval_of_an_arm_are_shown(figures: Any) -> None:
    figure, axes = figures.new_panel(x="bits per byte", y="")
    figures.intervals(axes, {"serial": [1.0, 1.1, 1.2], "sync": [1.3]})
    drawn = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) in (1, 3)]
    assert [1.0, 1.1, 1.2] in drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["serial", "sync"]
    figure.canvas.draw()
