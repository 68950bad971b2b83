"""A schedule is one file: every command that reads the run finds it again."""

import pytest
import yaml

from tests.own_plugins import mlxhog
from tests.training.small import small_config

SCHEDULE = """
from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config.options import option
from mlxhog.config.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Staircase(Schedule):
    name: ClassVar[str] = "staircase"
    about: ClassVar[str] = "halved stair by stair"

    stairs: int = option(4, "stairs", low=1)

    def at(self, lr: float, progress: float, update: int) -> float:
        return lr * 0.5 ** int(progress * self.stairs)
"""


@pytest.mark.slow
def test_a_run_with_an_own_schedule_is_resumed_replayed_and_evaluated(tmp_path):
    (tmp_path / "mine.py").write_text(SCHEDULE)
    (tmp_path / "conf.yaml").write_text("plugin: mine.py\nschedule: staircase\nsteps: 2\n")
    small_config(tmp_path)  # writes a text
    off = ("--eval-every", "off", "--sample-every", "off")
    small = ("--model", "small.yaml", "--data", "text", "--seq-len", "32", *off, "--steps", "2")
    new = ("train", "--workers", "mlx:cpu*2", "--determinism", "record", "--quiet", *small)
    refused = mlxhog(tmp_path, *new, "--config", "conf.yaml")
    assert refused.code == 2
    assert "schedule 'staircase' is not known" in refused.err
    assert "you have never named that file" in refused.err
    for words in (
        (*new, "--plugin", "mine.py", "--schedule", "staircase(stairs=2)"),
        ("replay", "latest"),
        ("eval", "latest", "--data", "mine.py", "--backend", "mlx:cpu"),
        ("train", "--resume", "latest", "--determinism", "none", "--steps", "2", "--quiet"),
        (*new, "--config", "conf.yaml"),
    ):
        ended = mlxhog(tmp_path, *words)
        assert ended.code == 0, (words, ended.err)
        if words[0] == "train":
            newest = max((tmp_path / "runs").glob("*/config.yaml"))
            stored = yaml.safe_load(newest.read_text())
            assert stored["plugin"].startswith(f"{tmp_path / 'mine.py'} sha256:")
            assert stored["schedule"]["name"] == "staircase"
