"""`mlxhog mad train`: from a command line to one line of JSON."""

import json
import signal

import pytest

from mlxhog.cli import main
from mlxhog.mad.training.evaluation import CandidateEvaluations
from mlxhog.training.worker.steps import Steps
from tests.words import changed

SIZES = ("--task CR --task-set vocab=8 --task-set seq_len=16 --task-set train_rows=96 "
         "--task-set test_rows=32 "
         "--batch-size 16 --eval-every 6 --threads 1 --seed 3 --lr 2e-3 "
         "--optimizer adamw(weight_decay=0,beta2=0.999)").split()  # fmt: skip
SMALL = [*SIZES, "--dim", "16", "--layers", "gated-conv swiglu"]


def mad_train(*words):
    return main(["mad", "train", *words])


def trained(capsys, *words, first=SMALL):
    """The last output line of a run, as JSON."""
    assert mad_train(*first, "--json", "--quiet", *words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("backend", ["mlx", "torch", "mlx:cpu"])
@pytest.mark.usefixtures("no_apple_gpu")
def test_a_run_ends_with_one_line_of_json(backend, capsys):
    result = trained(capsys, "--steps", "12", "--backend", backend)
    assert list(result)[:6] == ["task", "layers", "backend", "status", "steps", "seconds"]
    assert (result["task"], result["layers"]) == ("in-context-recall", "gated-conv swiglu")
    assert result["backend"] == f"{backend.partition(':')[0]}:cpu"
    assert (result["status"], result["steps"]) == ("done", 12)
    assert 0 < result["acc_macro"] <= 1
    assert [point["step"] for point in result["curve"]] == [6, 12]
    assert result["curve"][-1]["acc_token"] == result["acc_token"]
    assert result["settings"]["vocab"] == 8


def test_a_dry_run_says_sizes_and_a_key_that_is_the_same_however_workers_train(capsys):
    output = trained(capsys, "--dry-run")
    assert (output["limit"], output["epoch"], output["dim"]) == (2000, 6, 16)
    assert output["arena_bytes"] > 4 * output["params"]

    def key(flags):
        return trained(capsys, "--workers", "mlx:cpu*2", "--dry-run", *flags.split())["key"]

    for strategy in ("ssp --slack 2", "locked --staleness-lr linear:0.5"):
        assert key(f"--strategy {strategy}") == key("") != key("--schedule constant")


def test_flags_reach_the_recipe_and_several_workers(capsys):
    words = "--epochs 2 --workers mlx:cpu*2 --strategy sync --weight-decay 0.1 --select val"
    result = trained(capsys, *words.split())
    assert (result["backend"], result["strategy"]) == ("mlx:cpu,mlx:cpu", "sync")
    assert result["limit"] == result["steps"] == 6  # of two batches each
    assert result["recipe"]["weight_decay"] == 0.1
    assert result["settings"]["val_rows"] == 32
    assert result["val_token"] is not None


def test_an_architecture_file_says_layers_width_and_position(tmp_path, capsys):
    file = tmp_path / "arch.yaml"
    file.write_text("{dim: 24, position: learned, layers: [swiglu]}\n")
    output = trained(capsys, "--arch", str(file), "--steps", "2", first=SIZES)
    assert (output["layers"], output["dim"]) == ("swiglu", 24)
    assert output["params"] > 24 * 15  # of the positions only
    assert main(["mad", "show", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "position learned backbone" in shown  # the fact, beside the part of that name
    assert "position weight" in shown


def test_a_diverged_run_ends_soon_says_so_and_exits_with_4(capsys):
    assert mad_train(*changed(SMALL, "--steps", "500", "--lr", "1e30", "--json")) == 4
    output = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (output["status"], output["steps"] < 50) == ("diverged", True)
    assert output["acc_token"] == output["acc_macro"] == 0.0


def test_ctrl_c_ends_with_what_was_reached(capsys, monkeypatch):
    add = CandidateEvaluations.add

    def interrupted(*how):
        add(*how)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CandidateEvaluations, "add", interrupted)
    words = "--workers mlx:cpu*2 --steps 1000000 --stop-accuracy 2 --json"
    assert mad_train(*SMALL, *words.split()) == 130
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["status"] == "interrupted"
    assert result["curve"][-1]["step"] == result["steps"] > 0


def test_ctrl_c_before_the_first_step_ends_with_a_score_of_the_initial_model(capsys, monkeypatch):
    monkeypatch.setattr(Steps, "step", lambda steps: signal.raise_signal(signal.SIGINT))
    assert mad_train(*SMALL, "--json") == 130
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["status"], result["steps"]) == ("interrupted", 0)
    assert [point["step"] for point in result["curve"]] == [0]
