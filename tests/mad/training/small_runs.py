"""A run of a candidate small enough for a test: width 16, two layers, a fraction of a second."""

from dataclasses import replace

from mlxhog.mad.options import PUBLISHED, Recipe
from mlxhog.mad.run import RunConfig
from mlxhog.models.mad.sequence import parse

SETTINGS = {"vocab": 8, "seq_len": 16, "train_rows": 96, "test_rows": 32}
RECIPE = {"optimizer": PUBLISHED, "lr": 2e-3, "batch_size": 16, "steps": 12, "eval_every": 6}


def small_run(
    *, layers="gated-conv swiglu", workers="torch:cpu", seed=3, dim=16, task="in-context-recall",
    settings=None, **recipe,
):  # fmt: skip
    """A run of six steps an epoch; `recipe` replaces fields of the recipe."""
    return RunConfig(
        task=task, settings=SETTINGS | (settings or {}), layers=parse(layers), dim=dim, seed=seed,
        recipe=Recipe(**RECIPE | recipe), workers=workers,
    )  # fmt: skip


def numbers(result):
    """The record without its times."""
    curve = tuple(replace(point, seconds=0.0) for point in result.curve)
    return replace(result, seconds=0.0, at="", curve=curve)


class Recorder:
    """Callbacks that keep their arguments, and give fixed answers."""

    def __init__(self, *, prune=False, interrupt_at=None):
        self.beats, self.points, self.asked = 0, [], []
        self._prune, self._interrupt_at = prune, interrupt_at

    def beat(self):
        self.beats += 1
        if self.beats == self._interrupt_at:
            raise KeyboardInterrupt

    def on_eval(self, point):
        self.points.append(point)

    def should_prune(self, point):
        self.asked.append(point.step)
        return self._prune
