"""A file that ends before the rows of a task is refused, before anything is drawn or written."""

from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.mad.tasks.depo import Depo
from mlxhog.mad.training import run_plan
from tests.pairs import each_of


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def file(**model):
    lines = "".join(f"  {name}: {value}\n" for name, value in model.items())
    Path("a.yaml").write_text(f"model:\n  dim: 16\n{lines}")


TRAIN = "mad train --arch a.yaml --dry-run --task"
BENCH = "mad bench --config a.yaml --dry-run --suite"


@each_of(
    ("model", "words", "message"),
    [
        (
            {"position": "learned", "layers": "mlstm swiglu"},
            f"{TRAIN} CR",
            "a.yaml has max_length 64, at which position learned ends, and in-context-recall has "
            "rows of 127 tokens; set max_length to at least 127 in the file, or choose shorter",
        ),
        ({"layers": "hyena mh-hyena"}, f"{TRAIN} CR", "at which hyena and mh-hyena end, and"),
        ({"layers": "hyena swiglu"}, f"{BENCH} lite", "and selective-copying has rows of 256"),
    ],
)
def test_a_task_with_longer_rows_than_a_candidate_is_made_for_is_refused(
    model, words, message, capsys, monkeypatch
):
    monkeypatch.setattr(run_plan, "make_task", None)  # nothing is drawn
    file(max_length=64, **model)
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["a.yaml"]


def test_scored_rows_longer_than_those_to_train_on_are_refused_with_learned_positions(
    capsys, monkeypatch
):
    monkeypatch.setattr(Depo, "test_length", property(lambda settings: 2048))
    monkeypatch.setattr(run_plan, "make_task", None)
    message = (
        "position is learned, and depo trains on rows of 56 tokens and scores rows of 2048: no row "
        "trains the positions from 56 on; choose position none or sincos"
    )
    file(position="learned", layers="mlstm", max_length=4096)
    space = "space: {depth: 1, position: learned, mixers: [mlstm], channels: [mlp]}"
    Path("s.yaml").write_text(space)
    for words in (
        "mad train --layers mlstm --task depo --position learned --dry-run",
        "mad bench --config a.yaml --suite knowledge --dry-run",
        "mad search --space s.yaml --suite knowledge --dry-run",
    ):
        assert main(words.split()) == 2
        assert message in capsys.readouterr().err
    file(layers="hyena swiglu", max_length=64)
    assert main(f"{TRAIN} depo".split()) == 2
    assert "and depo has rows of 2048 tokens" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["a.yaml", "s.yaml"]
