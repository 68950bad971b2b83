"""`--plugin` adds all definitions of a file, of any kind."""

import json
from pathlib import Path

from tests.own_plugins import mlxhog

EXAMPLES = Path(__file__).parents[2] / "examples"
LAYER, TASK = EXAMPLES / "my_layer.py", EXAMPLES / "my_task.py"
SCHEDULE = """
from mlxhog.config.choices import SCHEDULES, Choice

@dataclass(frozen=True, kw_only=True)
class Halving(Choice):
    kind = SCHEDULES
    name: ClassVar[str] = "halving"
"""
SMALL = ("--set", "seq_len=9", "--set", "train_rows=64", "--set", "test_rows=16", "--dim", "16")


def test_a_file_with_a_layer_a_task_and_a_schedule_is_named_once(tmp_path):
    (tmp_path / "all.py").write_text(LAYER.read_text() + TASK.read_text() + SCHEDULE)
    how = ("--plugin", "all.py", "--layers", "my_layer swiglu", "--task", "MY", *SMALL)
    for workers in ("mlx:cpu", "mlx:cpu*2"):
        ended = mlxhog(
            tmp_path, "mad", "train", *how, "--workers", workers, "--steps", "2", "--json"
        )
        assert ended.code == 0, ended.err
        result = json.loads(ended.out)
        assert (result["task"], result["status"], result["steps"]) == ("my_task", "done", 2)


def test_the_rows_of_a_task_from_a_file_are_drawn_again_by_it(tmp_path):
    text = TASK.read_text()
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "other.py").write_text(text.replace("content[:, ::-1]", "content"))
    rows = ("--task", "my_task", "--train-rows", "20", "--test-rows", "9", "--out", "r.npz")
    assert mlxhog(tmp_path, "mad", "data", "--plugin", "mine.py", *rows).code == 0
    for plugin, code in (("mine.py", 0), ("other.py", 1)):
        ended = mlxhog(tmp_path, "mad", "check", "r.npz", "--plugin", plugin)
        assert ended.code == code, ended
    ended = mlxhog(tmp_path, "mad", "check", "r.npz")
    assert ended.code != 0
    assert "no task 'my_task'" in ended.err
    assert "--plugin FILE" in ended.err


def test_an_own_strategy_has_its_numbers_for_the_workers_of_a_candidate(tmp_path):
    how = ("--plugin", str(EXAMPLES / "my_strategy.py"), "--workers", "torch:cpu*2", "--dry-run")
    of = ("--task", "CR", "--layers", "gated-conv", *SMALL[2:])
    ended = mlxhog(tmp_path, "mad", "train", *of, *how, "--strategy", "my_strategy(share=0.3)")
    assert ended.code == 0, ended.err
    for strategy in ("hogwild(blocks=disjoint)", "local_sgd(split=dirichlet)"):
        ended = mlxhog(tmp_path, "mad", "train", *of, *how, "--strategy", strategy)
        assert (ended.code, "is for mlxhog train; leave it out" in ended.err) == (2, True)
