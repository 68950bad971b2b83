"""`mlxhog mad data`, through the real command."""

import json
from pathlib import Path

from mlxhog.cli import main
from tests.mad.tasks.golden import read


def test_a_line_writes_the_same_whole_file_again_and_a_dry_run_writes_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = "mad data --task in-context-recall --set vocab=16 --set seq_len=32 --out {} --json"
    assert main([*words.format("a.npz").split(), "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["task"], planned["vocab"]) == ("in-context-recall", 16)
    assert not list(Path().iterdir())
    Path("b.npz").write_text("old")
    for name in ("a.npz", "b.npz"):
        assert main(words.format(name).split()) == 0
    output = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (output["train_rows"], output["test_rows"], output["length"]) == (12_800, 1_280, 31)
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    assert read(Path("a.npz")).train_x.shape == (12_800, 31)
