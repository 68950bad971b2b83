"""`mlxhog mad data` and `mlxhog mad check`, through the real commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.cli import main

GOLDEN = Path(__file__).parent / "golden"
SMALL = "--train-rows 300 --test-rows 40".split()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def mad(*words):
    return main(["mad", *words])


def test_data_that_was_written_passes_the_check(capsys):
    words = "data --task in-context-recall --set vocab=16 --set seq_len=32 --out cr.npz --json"
    assert mad(*words.split()) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["train_rows"], output["test_rows"], output["length"]) == (12_800, 1_280, 31)
    assert mad("check", "cr.npz") == 0
    assert capsys.readouterr().out == "cr.npz: in-context-recall, seed 12345: ok\n"


def test_the_dry_run_says_what_would_be_written_and_writes_nothing(capsys):
    assert mad(*"data --task M --set vocab=8192 --out m.npz --dry-run".split()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "file m.npz task memorization" in said
    assert "vocab 8,192" in said
    assert not list(Path().iterdir())


def test_a_file_that_is_there_is_replaced_as_a_whole(capsys):
    Path("cr.npz").write_text("old")
    assert mad("data", "--task", "CR", "--out", "cr.npz", *SMALL) == 0
    assert [path.name for path in Path().iterdir()] == ["cr.npz"]
    assert mad("check", "cr.npz") == 0


@pytest.mark.parametrize("task", ["memorization", "selective-grammar", "depo"])
def test_rows_that_differ_in_any_bit_are_named_and_end_the_check_with_1(task, capsys):
    for name in ("good.npz", "bad.npz"):
        assert mad("data", "--task", task, "--out", name, "--set", "test_rows=40") == 0
    arrays = dict(np.load("bad.npz"))
    arrays["train_targets"][[17, 20], 7] += 1
    arrays["test_inputs"][3, 0] += 1
    common = next((name for name in ("kv_values", "grammar") if name in arrays), None)
    if common:
        arrays[common][2] += 1
    np.savez("bad.npz", **arrays)
    capsys.readouterr()
    assert mad("check", "good.npz", "bad.npz") == 1
    printed = capsys.readouterr().out
    assert f"good.npz: {task}, seed 12345: ok\nbad.npz: {task}, seed 12345: FAIL" in printed
    assert "  train differs in row 17, 20\n  test differs in row 3\n" in printed
    assert mad("check", "good.npz", "bad.npz", "--json") == 1
    output = json.loads(capsys.readouterr().out)
    failed = [("train", [17, 20]), ("test", [3])]
    failed = ([(common, [2])] if common else []) + failed
    assert output == {
        "ok": False,
        "failed": [{"file": "bad.npz", "part": part, "rows": rows} for part, rows in failed],
    }


def test_rows_of_another_program_are_refused_with_the_reason(capsys):
    assert mad("check", str(GOLDEN / "mqar_v64_p4_t32.npz")) == 2
    refused = capsys.readouterr().err
    assert "mqar_v64_p4_t32.npz: its rows are by HazyResearch/zoology d88d6f5" in refused
    assert "only those by mlxhog 1 can be drawn again" in refused
