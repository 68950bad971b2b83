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


def test_rows_that_no_memory_holds_are_one_message_and_the_code_of_a_lack(capsys):
    assert mad(*"data --task CR --train-rows 999999999999 --out a.npz".split()) == 3
    output = capsys.readouterr().err
    assert output.startswith("the memory is used up: ")
    assert output.endswith("; ask for smaller sizes\n")
    assert not list(Path().iterdir())


def test_a_file_of_something_else_is_refused_without_a_word_about_pickle(capsys):
    Path("text.npz").write_text("no arrays")
    assert mad("check", "text.npz") == 2
    output = capsys.readouterr().err
    assert "text.npz: not an .npz file of plain arrays" in output
    assert "pickle" not in output


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data --task CR --set seq_len=31 --out a", "an even number, at least 4"),
        ("data --task CR --set seqlen=32 --out a", "did you mean 'seq_len'?"),
        ("data --task CR --set vocab --out a", "wanted key=value"),
        ("data --task CR --set vocab=many --out a", "--set vocab is 'many'"),
        ("data --task CR --set vocab=8 --set vocab=9 --out a", "--set vocab is given twice"),
        ("data --task CR --set train_rows=8 --train-rows 9 --out a", "are the same; keep one"),
        ("data --task CRR --out a", "no task 'CRR'"),
        ("data --task CR", "--out is missing"),
        ("data --out a", "--task is missing"),
        ("data --task CR --out no/a.npz", "name a file in a directory"),
        ("data --task CR --out .", "name a file in a directory"),
        ("data --task CR --out=", "name a file in a directory"),
        (f"data --task CR --out {'a' * 300}", "File name too long; name another path"),
        ("data --task CR --out a --sed 3", "no flag '--sed'; did you mean '--seed'?"),
        ("data --task CR --out a --seed -1", "--seed is '-1'"),
        ("check nothing.npz", "nothing.npz: cannot read it: No such file"),
        ("check", "FILE is missing"),
        ("check a --jsn", "did you mean '--json'?"),
    ],
)
def test_wrong_input_is_answered_with_the_way_out_and_writes_nothing(words, message, capsys):
    assert mad(*words.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())
