"""`--share-embedding` of `mlxhog mad search`, through the real command."""

import json
from pathlib import Path

import pytest

from mlxhog.cli import main

SPACE = """\
space:
  depth: 2
  template: alternate
  mixers: [gated-conv, linear-attention]
  channels: [swiglu]
"""
SMALL = "--space space.yaml --tasks M --steps 20 --dim 16 --no-prune --json"
ONE = "--parallel 1 --backend mlx"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)


def mad(words):
    return main(["mad", *words.split()])


def records(study):
    lines = (Path("studies") / study / "runs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_candidates_train_one_embedding_table():
    assert mad(f"search {SMALL} {ONE} --study own") == 0
    assert mad(f"search {SMALL} {ONE} --study shared --share-embedding") == 0
    own, shared = ({one["candidate"]: one for one in records(name)} for name in ("own", "shared"))
    first, second = own
    assert shared[first]["loss"] == own[first]["loss"]  # the table had its initial values
    assert shared[second]["loss"] != own[second]["loss"]  # the table had the updates of the first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--share-embedding --workers torch:cpu,mlx:cpu", "--share-embedding is for candidates of"),
        ("--share-embedding --executor ray", "use --executor local"),
    ],
)
def test_what_cannot_be_together_is_refused_and_nothing_is_run(flags, message, capsys):
    assert mad(f"search {SMALL} {flags} --study refused") == 2
    assert message in capsys.readouterr().err
    assert not list(Path().glob("studies/refused/runs.jsonl"))
