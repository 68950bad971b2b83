"""The Python entries beside `train` and `load`: they do what their commands do."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import mlxhog
import mlxhog.mad
from mlxhog.cli import main
from tests.cli.command import told
from tests.pairs import each_of
from tests.training.small import small_config

QUICK = {"seq_len": 32, "batch_size": 2, "threads": 1, "workers": "torch:cpu"}


def test_they_are_functions_and_their_import_loads_no_framework():
    program = (
        "import sys, mlxhog, mlxhog.mad, mlxhog.doctor\n"
        "assert not {'torch', 'mlx', 'numpy'} & set(sys.modules)\n"
        "entries = mlxhog.evaluate, mlxhog.compare, mlxhog.parity, mlxhog.mad.search\n"
        "assert all(map(callable, entries))\n"
        "assert not {'torch', 'mlx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_evaluate_scores_the_validation_set_and_other_text_as_the_command_does(tmp_path, capsys):
    config = small_config(tmp_path, steps=2, workers="torch:cpu", eval_every="1h")
    result = mlxhog.train(config, observer=None)
    scores = mlxhog.evaluate(result.run, backend="torch:cpu", runs_dir=tmp_path / "runs")
    printed = told(capsys, "eval", result.run, "--backend", "torch:cpu")
    assert scores.to_json() | {"seconds": 0} == printed | {"seconds": 0}
    assert scores.bits_per_byte == pytest.approx(result.final_bits_per_byte)
    (tmp_path / "letter.txt").write_text("Never wait. " * 20)
    seen = []
    other = mlxhog.evaluate(result.run, tmp_path / "letter.txt", observer=seen.append)
    assert [*other.files] == ["letter.txt"]
    assert other.whole.n_bytes == 240
    assert seen
    marked = tmp_path / "marked.txt"
    marked.write_text("Never wait.<|endoftext|>" * 9)
    words = "eval", result.run, "--backend", "torch:cpu", "--data", str(marked)
    for flags, text in (
        ((), "Never wait."), (("--document-separator", "none"), "Never wait.<|endoftext|>")
    ):  # fmt: skip
        assert told(capsys, *words, *flags)["bytes"] == 9 * len(text)
    both = [tmp_path / "letter.txt", str(marked)]
    scores = mlxhog.evaluate(result.run, both, seq_len=np.int64(32), document_separator="none")
    assert {name: one.n_bytes for name, one in scores.files.items()} == {
        "letter.txt": 240, "marked.txt": 216
    }  # fmt: skip
    assert scores.seq_len == 32
    with pytest.raises(mlxhog.ConfigError, match="name a text with --data"):
        mlxhog.evaluate(result.run, text_key="body")
    with pytest.raises(mlxhog.ConfigError, match="leave one out"):
        mlxhog.evaluate(result.run, "letter.txt", like="latest")


@each_of("seq_len", [-3, 0, 1, 64.5, "64", True])
def test_evaluate_refuses_a_wrong_length_before_it_looks_for_the_model(seq_len):
    with pytest.raises(mlxhog.ConfigError, match="wanted an integer from 2 on, or None"):
        mlxhog.evaluate("no such run", seq_len=seq_len)


def test_wrong_values_of_evaluate_and_load_are_errors_with_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(mlxhog.ConfigError, match=r"evaluate\(\): text_key is \('a', 'b'\); wanted"):
        mlxhog.evaluate("none", "letter.txt", text_key=("a", "b"))
    with pytest.raises(mlxhog.ConfigError, match=r"evaluate\(\): data is \[\]; wanted text"):
        mlxhog.evaluate("none", [])
    for call, message in (
        (partial(mlxhog.evaluate, checkpoint=3), r"evaluate\(\): 3 is no name of a run or a"),
        (partial(mlxhog.parity, "tiny", backends=3), "no backend '3'; wanted auto, or some of"),
        (partial(mlxhog.parity, "tiny", runs_dir=3), "3 is no path; give a text or a pathlib.Path"),
        (partial(mlxhog.mad.leaderboard, "first", studies_dir=3), "3 is no path"),
        (partial(mlxhog.mad.search, 3), r"search\(\): space is 3; give a YAML file, a name or"),
    ):  # fmt: skip
        with pytest.raises(mlxhog.ConfigError, match=message):
            call()
    with pytest.raises(mlxhog.ConfigError, match=r"load\(\): wait is 'soon'; wanted"):
        mlxhog.load("none", wait="soon")
    with pytest.raises(mlxhog.ConfigError, match=r"evaluate\(\): strict_data is 'maybe'; wanted"):
        mlxhog.evaluate("none", strict_data="maybe")
    for call in (partial(mlxhog.load, wait="10s"), mlxhog.evaluate):
        with pytest.raises(mlxhog.MlxhogError, match=f"{tmp_path}/mine has no runs"):
            call("none", runs_dir="~/mine")
        with pytest.raises(mlxhog.ConfigError, match="is no name of a run .* such as result.run"):
            call(mlxhog.Progress())
        with pytest.raises(mlxhog.CheckpointError, match="File name too long"):
            call("Fellow citizens, " * 20)
        with pytest.raises(mlxhog.ConfigError, match=r"\(\): runs_dir is ''; wanted a path"):
            call("none", runs_dir="")


def test_parity_returns_every_row_and_says_what_was_perturbed():
    how = {"backends": ["numpy", "torch:cpu"], "kernels": "eager", "seq_len": 9, "steps": 0}
    report = mlxhog.parity("tiny", set={"hidden_size": 32, "num_hidden_layers": 1}, **how)
    assert report.ok
    assert report.rows
    bad = mlxhog.parity("tiny", set="hidden_size=32", perturb="lm_head.weight", **how)
    assert not bad.ok
    assert bad.notes[-1].startswith("perturbed: ")


@each_of(
    ("values", "message"),
    [
        ({"batch_size": 0}, r"parity\(\): batch_size is 0; wanted a whole number at least 1"),
        ({"seq_len": 0, "seed": -1}, r"(?s)seed is -1; .*seq_len is 0; wanted"),
        ({"steps": 2000}, "steps is 2000; wanted a whole number at least 0 and at most 1000"),
        ({"dtype": "float16"}, "dtype is 'float16'; wanted one of float32, bfloat16"),
        ({"sides": "none-such"}, "--side none-such: "),
        ({"set": {"hidden_size": None}}, "the architecture lacks hidden_size"),
        ({"set": {"hidden_size": object()}}, r"set is \{.*; wanted NAME=VALUE"),
    ],
)
def test_parity_refuses_what_its_command_refuses(values, message):
    with pytest.raises(mlxhog.ConfigError, match=message):
        mlxhog.parity("mlstm" if "sides" in values else "tiny", backends="numpy", **values)


@each_of(
    ("a", "b", "values", "message"),
    [
        ({"lr": 1e-3}, {"lr": 1e-4}, {"time": 60, "steps": 9}, "time and steps are both given"),
        ({"seed": 1}, {"seed": 2}, {"steps": 9}, "seed is not for one side of a comparison"),
    ],
)
def test_compare_refuses_what_its_command_refuses(a, b, values, message):
    with pytest.raises(mlxhog.ConfigError, match=message):
        mlxhog.compare(a, b, model="no-such", **values)


@pytest.mark.slow
def test_compare_takes_mappings_files_and_configurations_and_continues(tmp_path, monkeypatch):
    small = small_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    how = {"steps": 2, "pairs": 2, "folder": "kept", "val_subset_tokens": 500}
    how |= {"runs_dir": str(tmp_path / "runs")}
    seen = []
    both = {"model": small.model, "data": small.data, "tokenizer": "bytes", **QUICK}
    found = mlxhog.compare({"lr": 1e-3}, {"lr": 1e-4}, observer=seen.append, **how, **both)
    assert found.verdict in ("a", "b", "inconclusive")
    assert found.folder == tmp_path / "kept"
    assert found.to_json()["differing"].keys() == {"lr"}
    assert len(found.pairs) == len(seen) >= 1
    again = mlxhog.compare({"lr": 1e-3}, {"lr": 1e-4}, observer=seen.append, **how, **both)
    assert (again.pairs, len(seen)) == (found.pairs, len(found.pairs))
    with pytest.raises(mlxhog.ConfigError, match="a TrainConfig has all options"):
        mlxhog.compare(small, small, **how, lr=1.0)


@pytest.mark.slow
def test_a_search_is_the_study_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(
        "space: {depth: 2, mixers: [gated-conv], channels: [swiglu, mlp]}\n"
    )
    outcome = mlxhog.mad.search(
        "space.yaml", study="s", tasks="in-context-recall", steps=2, dim=16, batch_size=16
    )
    assert outcome.status == "done"
    words = "mad search --space space.yaml --study s --tasks in-context-recall --steps 2 --dim 16"
    assert main([*words.split(), "--batch-size", "16", "--json"]) == 0  # nothing is left to do
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["best"]["candidate"] == outcome.best.candidate
    with pytest.raises(mlxhog.ConfigError, match="did you mean"):
        mlxhog.mad.search("space.yaml", stepps=2)
