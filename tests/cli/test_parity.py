"""`mlxhog parity` through the real command."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from mlxhog.backends.autodiff import MLXArrays
from mlxhog.base import float32, tensors
from mlxhog.cli import main
from mlxhog.models.families import param_spec
from mlxhog.models.ops.kernels import choose
from mlxhog.models.registry import load_architecture
from mlxhog.parity.subject import perturbed_init
from tests.backends import imprecise

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
    assert main(["parity", "--config", architecture, *SMALL]) == 0
    out, err = capsys.readouterr()
    answer = out.splitlines()[0]
    assert answer.startswith("Yes: all ")
    assert "agree (numpy, mlx:cpu)" in answer
    assert "PASS" not in out
    assert "FAIL" not in out
    assert "closest to its limit: " in out
    assert "parameters are initial values with noise on top" in out
    assert "numpy ..." in err
    assert main(["parity", "--config", architecture, *SMALL, "--all"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == answer
    assert shown.count("PASS") > 100
    assert {"loss", "logits", "stepwise/logits"} <= set(re.findall(r"PASS +(\S+)", shown))
    assert main(["parity", "--config", architecture, *SMALL, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_object_with_a_row_for_every_tensor(architecture, capsys, monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    fields = ["--set", "hidden_size=24", "--set", "num_heads=3"]
    assert main(["parity", architecture, *SMALL, *fields, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["subject"] == f"{architecture} with --set hidden_size=24, num_heads=3"
    assert "MLX_ENABLE_TF32=1 is set" in "".join(record["notes"])
    assert record["ok"] is True
    assert record["backends"] == ["numpy", "mlx:cpu"]
    for row in record["rows"]:
        assert {"a", "b", "what", "max_abs", "max_rel", "tolerance", "ok"} <= set(row)
        assert row["ok"] is (row["max_abs"] <= row["tolerance"])
    compared = {row["what"] for row in record["rows"] if row["a"] != row["b"]}
    for name in param_spec(load_architecture(architecture)):
        assert {f"grad/{name}", f"after/adamw/{name}"} <= compared
    assert {"loss", "logits", "hidden/0", "hidden/2", "hidden/out_norm", "state/1/C"} <= compared
    assert {"products/7 rows", "gates/mlstm_cell", "tiny/products"} <= compared
    itself = {row["what"] for row in record["rows"] if row["a"] == row["b"]}
    assert "stepwise/logits" in itself


def test_a_perturbed_parameter_ends_with_1_and_the_first_bad_tensor(architecture, capsys):
    command = ["parity", architecture, *SMALL, "--perturb", "lm_head.weight", "--json"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["ok"] is False
    assert record["perturbed"] == {"name": "lm_head.weight", "side": "mlx:cpu"}
    assert record["first_bad"]["what"] == "logits"
    assert "disagree: logits[" in err


@pytest.mark.usefixtures("sides_here")
def test_products_of_10_bits_disagree_and_a_users_tf32_is_kept_and_named(
    architecture, monkeypatch, capsys
):
    ops = choose("mlx", "native", "cpu")
    cut = imprecise.operands_of_10_bits(ops.linears, MLXArrays("cpu", 1))
    monkeypatch.setattr(ops, "linears", cut)
    command = ["parity", architecture, *QUICK, "--seq-len", "1", "--quiet"]
    assert main(command) == 1
    assert "TF32" not in capsys.readouterr().err
    monkeypatch.setenv(float32.VARIABLE, "1")
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "disagree: " in err
    assert "MLX_ENABLE_TF32=1 is set, so an M5's GPU" in err
    assert os.environ[float32.VARIABLE] == "1"


def test_save_writes_what_was_compared(architecture, tmp_path, capsys):
    file = tmp_path / "arrays.npz"
    command = ["parity", architecture, *SMALL, "--save", str(file), "--json"]
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    with np.load(file) as arrays:
        assert arrays["numpy/logits"].shape == arrays["mlx:cpu/logits"].shape == (1, 9, 23)
        assert arrays["numpy/loss"].dtype == np.float64
        assert arrays["mlx:cpu/grad/lm_head.weight"].shape == (23, 16)
        (row,) = [row for row in rows if row["what"] == "logits" and row["a"] != row["b"]]
        apart = np.abs(arrays["mlx:cpu/logits"].astype(float) - arrays["numpy/logits"]).max()
        assert apart == row["max_abs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.npz", "small.yaml"]


@pytest.fixture
def checkpoint(architecture, tmp_path):
    cfg = load_architecture(architecture)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(cfg.to_dict()))
    tensors.write(folder / "model.safetensors", perturbed_init(cfg, 3))
    return folder


def test_a_checkpoint_is_compared_with_its_own_parameters(checkpoint, tmp_path, capsys):
    file = tmp_path / "arrays.npz"
    assert main(["parity", str(checkpoint), *SMALL, "--save", str(file)]) == 0
    assert "parameters are the checkpoint's own" in capsys.readouterr().out
    params = tensors.read(checkpoint / "model.safetensors")
    with np.load(file) as arrays:
        after = arrays["numpy/after/sgd/lm_head.weight"]
    assert 0 < np.abs(after - params["lm_head.weight"]).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(number, tmp_path):
    command = [sys.executable, "-m", "mlxhog", "parity", "7to1-tiny", "--steps", "200"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as running:
        assert "numpy" in running.stderr.readline()  # it began
        os.kill(running.pid, number)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in err
    assert not list(tmp_path.iterdir())
