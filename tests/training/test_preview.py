"""The output of `train --dry-run`, and warnings of text that is read too often."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.base import verdicts
from mlxhog.base.verdicts import Verdicts
from mlxhog.checkpoint import creation
from mlxhog.cli import main
from mlxhog.config.budget import Budget
from mlxhog.training import preview
from mlxhog.training import strategy_plan as plans
from mlxhog.training.plan import make_plan
from tests.training.small import Messages, end_the_time_when, small_config
from tests.words import changed

WORDS = (
    "train --dry-run --model small.yaml --data text --seq-len 32 --batch-size 2 --workers mlx:cpu "
    "--threads 1 --strategy hogwild --set hidden_size=64 --tokens 10000"
).split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and a text, on a machine that was never measured."""
    small_config(tmp_path)
    (tmp_path / "text" / "12.jsonl").write_text('{"content": "one more"}\n')
    (tmp_path / "text" / "pic.jpg").write_bytes(b"\0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verdicts, "load", lambda: Verdicts(Path("none"), "never measured"))
    return tmp_path


def said(capsys, *words):
    assert main(changed(WORDS, *words)) == 0
    return capsys.readouterr().out


def test_it_names_changed_options_files_and_memory(here, capsys):
    known = json.loads(said(capsys, "--json"))
    assert known["changed"]["set"] == "hidden_size=64"
    assert {"model", "data", "tokens", "seq_len"} <= known["changed"].keys()
    assert not {"clip", "time", "optimizer", "lr"} & known["changed"].keys()
    assert "lr" in known["decided"]
    assert known["config"]["clip"] == 0.5
    data = known["data"]
    assert len(data["files"]) == 13
    assert [Path(one["path"]).name for one in data["skipped"]] == ["pic.jpg"]
    assert (data["documents"], data["held_out_documents"]) == (12, 1)
    assert known["tokens_per_step"] == 64
    assert known["epochs"] == pytest.approx(10_000 / known["epoch_tokens"])
    assert known["memory_bytes"] == known["arena_bytes"] + known["worker_bytes"]
    assert known["checkpoint_bytes"] > 4 * known["parameters"]
    assert known["token_file_bytes"] > data["tokens"]
    assert (known["tokens_per_s"], known["seconds"]) == (None, None)

    lines = [" ".join(line.split()) for line in said(capsys).splitlines()]
    assert "set hidden_size=64" in lines
    assert not any(line.startswith("clip") for line in lines)
    assert lines.index("and 3 more") > lines.index("files: 13")  # only ten are named
    assert any("pic.jpg, reason not text" in line for line in lines)
    assert f"parameters {known['parameters']:,}" in lines
    assert "held out documents 1" in lines
    assert any(line.startswith("tokens per s from unknown") for line in lines)
    assert not (here / "runs").exists()


def test_it_names_the_files_with_held_out_text_and_their_share(here, capsys):
    (here / "text" / "novel.md").write_text("call me ishmael " * 3000)
    data = json.loads(said(capsys, "--json"))["data"]
    by_file = {Path(one["path"]).name: one["held_out_bytes"] for one in data["files"]}
    assert 0.07 * 48_000 < by_file["novel.md"] < 0.09 * 48_000
    assert sum(by_file.values()) == data["held_out_bytes"]
    assert data["held_out_share"] == data["held_out_bytes"] / (
        data["held_out_bytes"] + data["bytes"]
    )
    shown = said(capsys)
    first_file = shown.partition("files: 14\n")[2].partition("\n")[0]
    assert first_file.endswith("novel.md, size 48 kB, held out 3.8 kB")
    assert data["held_out_rule"] == "volume"


def test_the_time_is_estimated_from_a_run_like_it_and_else_from_doctor(here, monkeypatch):
    config = small_config(here, tokens=10_000, steps=None)
    plan = make_plan(config)
    assert preview.tokens_per_s(plan) is None
    record = {"tokens_per_s": {"mlx:cpu": 1000.0}}
    monkeypatch.setattr(verdicts, "load", lambda: Verdicts(Path("none"), None, record))
    rough = preview.facts(plan, config)
    assert rough["tokens_per_s"] == pytest.approx(1000 * 939_680 / plan.parameters)
    assert "rough guess" in rough["tokens_per_s_from"]
    for parameters, backend, rate in (
        (plan.parameters, "mlx:cpu", 500.0),
        (plan.parameters + 1, "mlx:cpu", 1.0),
        (plan.parameters, "torch:cpu", 2.0),
    ):
        earlier = creation.create(Path(config.out), f"r{rate:g}")
        result = {"tokens_per_s": rate, "workers": [{"backend": backend}]}
        earlier.write_status({"status": "done", "parameters": parameters, "result": result})
    like = preview.facts(plan, config)
    assert (like["tokens_per_s"], like["seconds"]) == (500.0, 20.0)
    assert like["tokens_per_s_from"].startswith("run ")


def test_epochs_count_the_batches_of_synchronous_rounds(here):
    config = small_config(here, workers="mlx:cpu*3", async_after=0.25, steps=None, epochs=6)
    plan = make_plan(config)
    tickets = plan.batches().n_tickets
    assert [one.budget.steps for one in (plan, plan.other)] == [2 * tickets, 6 * tickets]
    assert preview.facts(plan, config)["epochs"] == pytest.approx(6.0, rel=0.01)
    many = make_plan(replace(config, epochs=None, steps=4 * tickets))  # a quarter takes 3 batches
    (warning,) = [note for note in many.notes if "times in this budget" in note]
    assert "is read 6" in warning


@pytest.mark.slow
def test_a_run_with_time_for_more_passes_warns_when_it_has_made_four(here, monkeypatch):
    monkeypatch.setattr(plans, "MANY_PASSES", 0.01)
    monkeypatch.setattr("mlxhog.training.reporting.MANY_PASSES", 0.01)
    messages = Messages()
    end_the_time_when(monkeypatch, lambda: any("mostly memorises" in text for text in messages))
    train(small_config(here, steps=None, time=600.0), observer=messages)
    (warning,) = [text for text in messages if "mostly memorises" in text]
    assert "was read 0.01 times" in warning


@pytest.mark.parametrize(
    ("budget", "rate", "read"),
    [
        (Budget(steps=10), None, 6.4),
        (Budget(tokens=200), None, 2.0),
        (Budget(steps=10, tokens=200), None, 2.0),
        (Budget(seconds=10), None, None),
        (Budget(seconds=10), 50.0, 5.0),
        (Budget(), 50.0, None),
    ],
)
def test_a_budget_is_counted_in_passes(budget, rate, read):
    result = plans.passes(budget, epoch_tokens=100, tokens_per_step=64, tokens_per_s=rate)
    assert result == read
