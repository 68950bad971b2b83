"""`--share-embedding` and `--batch-candidates` of `mlxhog mad search`, through the real command."""

from __future__ import annotations

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
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)


def mad(words: str) -> int:
    return main(["mad", *words.split()])


def records(study: str) -> list[dict]:
    lines = (Path("studies") / study / "runs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_candidates_share_an_embedding_and_the_board_says_what_that_did_to_the_ranking(capsys):
    assert mad(f"search {SMALL} {ONE} --study own") == 0
    assert mad(f"search {SMALL} {ONE} --study shared --share-embedding") == 0
    own, shared = ({one["candidate"]: one for one in records(name)} for name in ("own", "shared"))
    first, second = own
    assert shared[first]["loss"] == own[first]["loss"]  # the table had its initial values
    assert shared[second]["loss"] != own[second]["loss"]  # the table had the updates of the first
    capsys.readouterr()
    assert mad("board shared") == 0
    output = capsys.readouterr().out
    assert "shared against unshared embedding: rank correlation" in output
    assert "with study own (Spearman, 2 candidates)" in output


@pytest.mark.slow
def test_runs_of_one_shape_go_to_one_worker_together_and_it_says_which_way_is_faster(capsys):
    assert mad(f"search {SMALL} {ONE} --seeds 3 --batch-candidates 3 --study batched") == 0
    result = records("batched")
    assert [one["status"] for one in result] == ["done"] * 6
    log = (Path("studies") / "batched" / "logs" / "worker-1.log").read_text()
    assert log.count("3 runs ") == 2
    output = capsys.readouterr().err
    assert output.count("3 runs ") == 2
    assert output.count("ms alone, ") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--share-embedding --workers torch:cpu,mlx:cpu", "--share-embedding is for candidates of"),
        ("--batch-candidates 2 --workers torch:cpu*2", "--batch-candidates is for candidates of"),
        ("--share-embedding --executor ray", "use --executor local"),
        ("--batch-candidates 0", "at least 1"),
    ],
)
def test_what_cannot_be_together_is_refused_and_nothing_is_run(flags, message, capsys):
    assert mad(f"search {SMALL} {flags} --study refused") == 2
    assert message in capsys.readouterr().err
    assert not list(Path().glob("studies/refused/runs.jsonl"))
