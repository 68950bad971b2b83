"""`mlxhog analyze` through the real command."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mlxhog.cli import main
from tests.processes import alive, below
from tests.training.small import small_config
from tests.words import changed

MLX = ["--backend", "mlx:cpu"]  # it starts faster than torch
LOOK = ["--samples", "12", "--batches", "40", "--seq-len", "32", "--batch-size", "2"]


@pytest.fixture
def model(tmp_path):
    """The arguments for a small model and its text."""
    config = small_config(tmp_path)
    return [config.model, "--data", config.data, "--out", str(tmp_path / "runs")]


def analyzed(words, capsys):
    assert main(["analyze", *words, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    return output


@pytest.mark.slow
def test_json_has_blocks_staleness_bounds_and_advice(model, capsys):
    result = analyzed([*model, *LOOK, *MLX, "--seconds", "0.5", "--threads", "1"], capsys)
    assert [block["name"] for block in result["blocks"]] == [
        "embedding", "layer 0", "out_norm", "head",
    ]  # fmt: skip
    for block in result["blocks"]:
        assert 0 < block["omega"] <= block["parameters"]
        assert 0 <= block["delta"] <= block["rho"] <= 1
        low, high = block["interval"]
        assert low <= block["p_conf"] <= high
    (head,) = [block for block in result["blocks"] if block["name"] == "head"]
    assert head["omega"] == head["parameters"] == 320 * 32
    assert head["rho"] == head["delta"] == head["p_conf"] == 1
    assert [block["row_sparse"] for block in result["blocks"]] == [True, False, False, False]
    assert result["backend"] == "mlx:cpu"
    assert result["staleness"]["source"] == "probe"
    assert result["staleness"]["workers"] == 2
    assert result["staleness"]["write"] == "racy"
    assert 0 <= result["staleness"]["lost_update_rate"] < 1
    rules = {(bound["block"], bound["name"]): bound for bound in result["bounds"]}
    for name in ("proposition 4.1", "n^(1/4)", "perturbed iterate"):
        assert rules["head", name]["applies"] is False
        assert any(one["holds"] is False for one in rules["head", name]["assumptions"])
    assert {"write", "workers"} <= {one["topic"] for one in result["advice"]}
    assert result["embedding"]["batches"] == 40


@pytest.mark.slow
def test_a_run_is_analyzed_at_its_checkpoint_with_the_staleness_it_recorded(model, capsys):
    spec, *how = model
    train = ["--steps", "60", "--workers", "mlx:cpu*2", "--threads", "1", "--eval-every", "off"]
    small = ["--seq-len", "32", "--batch-size", "2", "--sample-every", "off", "--json"]
    assert main(["train", "--model", spec, *how, *train, *small]) == 0
    result = json.loads(capsys.readouterr().out)
    outcome = analyzed(["latest", "--out", how[-1], *LOOK[:4], *MLX], capsys)
    assert outcome["at"] == result["checkpoint"]
    assert outcome["staleness"]["source"] == "run"
    assert outcome["staleness"]["histogram"] == result["staleness"]
    assert outcome["lag"]["largest"] == max(map(int, result["staleness"]))
    assert outcome["lag"]["seen"] is True


@pytest.mark.slow
def test_a_person_reads_the_tables(model, tmp_path, capsys):
    how = [*MLX, "--seconds", "0", "--workers", "torch:cpu*3"]
    assert main(["analyze", *model, *LOOK, *how, "--all"]) == 0
    shown, err = capsys.readouterr()
    assert max(map(len, shown.replace(str(tmp_path), "").splitlines())) <= 100
    assert shown.split()[0] in ("Yes", "With", "Doubtful:", "Not")
    out = " ".join(shown.split())
    for text in (
        "do two updates meet? rows",
        "bounds are for a lag of 2",
        "loss of a neural network is not strongly convex, so there is no bound",
        "sparse gradients: does not hold",
        "- write: add steps losslessly",
    ):
        assert text in out
    assert "gradients ..." in err


def test_the_answer_comes_first_and_the_tables_by_all(model, capsys):
    words = ["analyze", *model, *LOOK, *MLX, "--seconds", "0"]
    assert main(words) == 0
    out, _ = capsys.readouterr()
    answer, *rest = out.splitlines()
    assert answer.partition(":")[0] in ("Yes", "Yes in practice", "With care", "Doubtful")
    assert len(answer) <= 80
    assert "- write: add steps losslessly" in out
    assert "because" not in out
    assert len(rest) < 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it_and_leaves_no_process(model, number):
    command = [sys.executable, "-m", "mlxhog", "analyze", *model, *MLX, "--seconds", "0"]
    command += changed(LOOK, "--samples", "100k", "--threads", "1")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "gradients" not in process.stderr.readline():
            assert process.poll() is None
        children = below(process.pid)
        assert children
        os.kill(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))
