"""`mlxhog parity` through the real command."""

import json
import re

import pytest

from mlxhog.base import tensors
from mlxhog.checkpoint import checkpoint
from mlxhog.conformance.subject import perturbed_init
from mlxhog.models.families import param_spec
from mlxhog.models.registry import load_architecture
from tests.cli.command import refused, said, told
from tests.saved import saved_run

QUICK = ["--backends", "numpy,mlx:cpu", "--kernels", "auto", "--steps", "1"]
SMALL = [*QUICK, "--seq-len", "9", "--batch-size", "1"]


@pytest.fixture
def architecture(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        "model_type: xlstm\nvocab_size: 23\nhidden_size: 16\nnum_hidden_layers: 2\nnum_heads: 2\n"
        "chunk_size: 4\nffn_round_up_to_multiple_of: 8\n"
    )
    return str(path)


@pytest.mark.slow
def test_the_answer_comes_first_and_all_shows_every_tensor(architecture, capsys):
    words = ("parity", architecture, *SMALL)
    out, err = said(capsys, *words)
    answer = out.splitlines()[0]
    assert answer.startswith("Yes: all ")
    assert "agree (numpy, mlx:cpu)" in answer
    assert re.search("PASS|FAIL", out) is None
    assert "closest to its limit: " in out
    assert "parameters are initial values with noise on top" in out
    assert "numpy ..." in err
    shown, _ = said(capsys, *words, "--verbose")
    assert shown.splitlines()[0] == answer
    assert shown.count("PASS") > 100
    assert {"loss", "logits", "stepwise/logits"} <= set(re.findall(r"PASS +(\S+)", shown))
    assert said(capsys, *words, "--quiet") == ("", "")


def test_json_is_one_object_with_a_row_for_every_tensor(architecture, capsys, monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    fields = ["--set", "hidden_size=24", "--set", "num_heads=3"]
    record = told(capsys, "parity", architecture, *SMALL, *fields)
    assert record["subject"] == f"{architecture} with --set hidden_size=24, num_heads=3"
    assert "MLX_ENABLE_TF32=1 is set" in "".join(record["notes"])
    assert (record["ok"], record["backends"]) == (True, ["numpy", "mlx:cpu"])
    for row in record["rows"]:
        assert {"a", "b", "what", "max_abs", "max_rel", "tolerance", "ok"} <= set(row)
        assert row["ok"] is (row["max_abs"] <= row["tolerance"])
    compared = {row["what"] for row in record["rows"] if row["a"] != row["b"]}
    for name in param_spec(load_architecture(architecture)):
        assert {f"grad/{name}", f"after/adamw/{name}"} <= compared
    assert {"loss", "logits", "hidden/0", "hidden/2", "hidden/out_norm", "state/1/C"} <= compared
    assert {"products/7 rows", "gates/mlstm_cell"} <= compared
    assert "stepwise/logits" in {row["what"] for row in record["rows"] if row["a"] == row["b"]}


def test_sequences_longer_than_the_positions_of_a_model_are_refused(capsys):
    fields = ["--set", "position=learned", "--set", "max_length=9"]
    fields += ["--set", "hidden_size=16", "--set", "vocab_size=23"]
    words = ("parity", "mh-attention(h2) swiglu", *fields)
    refused(capsys, "sequences have 67 tokens, but the model has 9 positions", *words, *QUICK)
    assert told(capsys, *words, *SMALL)["ok"]


def test_a_perturbed_parameter_ends_with_1_and_the_first_bad_tensor(architecture, capsys):
    words = ["parity", architecture, *SMALL, "--perturb", "lm_head.weight", "--json"]
    out, err = said(capsys, *words, code=1)
    record = json.loads(out)
    assert (record["ok"], record["first_bad"]["what"]) == (False, "logits")
    assert record["perturbed"] == {"name": "lm_head.weight", "side": "mlx:cpu"}
    assert "disagree: logits[" in err


def test_a_checkpoint_is_compared_with_its_own_parameters(architecture, tmp_path, capsys):
    cfg, folder = load_architecture(architecture), tmp_path / "c"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(cfg.to_dict()))
    params = perturbed_init(cfg, 3)
    params["lm_head.weight"][:] = 0.0
    tensors.write(folder / "model.safetensors", params)
    record = told(capsys, "parity", folder, *SMALL)
    run = saved_run(tmp_path / "runs", model=cfg, params=params)
    checkpoint.mark_best(run, checkpoint.latest(run))
    of_run = told(capsys, "parity", "latest/best", *SMALL, "--runs-dir", tmp_path / "runs")
    assert of_run["rows"] == record["rows"]
    assert "parameters are the checkpoint's own" in record["notes"]
    (row,) = [r for r in record["rows"] if (r["a"], r["what"]) == ("mlx:cpu", "logits")]
    assert (row["got"], row["wanted"], row["ok"]) == (0.0, 0.0, True)
