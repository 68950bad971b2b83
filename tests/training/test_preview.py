"""The output of `train --dry-run`, and warnings of text that is read too often."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from mlxhog.base import verdicts
from mlxhog.base.verdicts import Verdicts
from mlxhog.base.workers import WorkerSpec
from mlxhog.checkpoint import creation
from mlxhog.cli import main
from mlxhog.config.budget import Budget
from mlxhog.report.metrics import Progress, WorkerReport
from mlxhog.report.monitor import Monitor
from mlxhog.training import engines, lengths, preview
from mlxhog.training.plan import make_plan
from mlxhog.training.reporting import Reporter
from tests.training.small import small_config
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
    assert [file["field"] for file in data["files"]] == [None] * 12 + ["content"]
    assert [Path(one["path"]).name for one in data["skipped"]] == ["pic.jpg"]
    assert (data["documents"], data["held_out_documents"]) == (12, 1)
    assert known["tokens_per_step"] == 64
    assert known["epochs"] == pytest.approx(10_000 / known["epoch_tokens"])
    assert known["memory_bytes"] == known["arena_bytes"] + known["worker_bytes"]
    assert known["checkpoint_bytes"] > 4 * known["parameters"]
    assert known["token_file_bytes"] > data["tokens"]
    assert (known["tokens_per_s"], known["seconds"]) == (None, None)

    text = said(capsys)
    assert "  set: hidden_size=64\n" in text
    assert "clip" not in text
    assert "12.jsonl  24 B, field content\n" not in text  # only ten are named
    assert "  and 3 more\n" in text
    assert "13 files read" in text
    assert "pic.jpg: not text: a zero byte at offset 0\n" in text
    assert f"{known['parameters']:,} parameters" in text
    assert "training text  12 documents" in text
    assert "time           unknown" in text
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
    assert data["held_out_rule"] == "volume"
    lines = said(capsys).splitlines()
    (held_out,) = (place for place, one in enumerate(lines) if one.startswith("held-out text"))
    assert f", {data['held_out_share']:.1%} of the text, " in lines[held_out]
    assert lines[held_out].endswith("(volume: ends of long documents and whole short ones)")
    assert "novel.md  3.8 kB" in "".join(lines[held_out + 1 : held_out + 3])


def test_it_names_files_that_are_held_out_by_name(here, capsys):
    (here / "text" / "valid.txt").write_text("word " * 100)
    data = json.loads(said(capsys, "--json"))["data"]
    held_out = {Path(one["path"]).name: one["held_out_bytes"] for one in data["files"]}
    assert {name for name, n in held_out.items() if n} == {"valid.txt"}
    text = said(capsys)
    assert "(given: its own files or split)\n               in 1 of 14 files:\n" in text
    assert "note: held-out text, by name: valid.txt\n" in text


def test_it_names_files_whose_texts_are_in_other_fields(here, capsys):
    assert "fields  " not in said(capsys)
    (here / "text" / "13.jsonl").write_text('{"text": "a"}\n{"content": "b"}\n{"text": "c"}\n')
    text, known = said(capsys), json.loads(said(capsys, "--json"))
    at = {Path(file["path"]).name: file for file in known["data"]["files"]}
    assert at["13.jsonl"]["fields"] == {"text": 2, "content": 1}
    first, second = (at[name]["path"] for name in ("12.jsonl", "13.jsonl"))
    line = f"content in {first}; text (2 records) and content (1 record) in {second}\n"
    assert f"fields         {line}" in text


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
    assert "about 20 s" in preview.text(plan, config)


def test_workers_on_one_gpu_count_once_in_the_estimate(here, monkeypatch):
    team = [WorkerSpec(name, 1) for name in ("mlx:gpu", "torch:mps", "mlx:cpu")]
    plan = replace(make_plan(small_config(here)), workers=tuple(team))
    record = {"tokens_per_s": {"mlx:gpu": 9000.0, "torch:mps": 7000.0, "mlx:cpu": 1000.0}}
    monkeypatch.setattr(verdicts, "load", lambda: Verdicts(Path("none"), None, record))
    estimate = preview.tokens_per_s(plan)
    assert estimate is not None
    assert estimate[0] == pytest.approx(10_000 * 939_680 / plan.parameters)


def test_notes_and_the_warning_of_repetition_are_shown(here, capsys):
    known = json.loads(said(capsys, "--tokens", "1m", "--json"))
    (warning,) = [note for note in known["notes"] if "times in this budget" in note]
    assert f"read {known['epochs']:.3g} times" in warning
    assert f"note: {warning}" in said(capsys, "--tokens", "1m")


def test_epochs_count_the_batches_of_synchronous_rounds(here):
    config = small_config(here, workers="mlx:cpu*3", async_after=0.25, steps=None, epochs=6)
    plan = make_plan(config)
    tickets = math.ceil(plan.epoch_tokens / plan.tokens_per_step)
    assert plan.budget.steps == math.ceil(6 * tickets / 1.5)  # a quarter of the steps takes 3
    assert preview.facts(plan, config)["epochs"] == pytest.approx(6.0, rel=0.01)
    assert plan.strategy.mean_batches_per_step(went_async=True) == 1.0  # of a resumed run
    many = make_plan(replace(config, epochs=None, steps=plan.budget.steps))
    (warning,) = [note for note in many.notes if "times in this budget" in note]
    assert "is read 6" in warning


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
    result = lengths.passes(budget, epoch_tokens=100, tokens_per_step=64, tokens_per_s=rate)
    assert result == read
    assert (lengths.warning(read, 100) is not None) == (
        read is not None and read > lengths.MANY_PASSES
    )


class FastMonitor:
    """The monitor of a run that has read its text `times` times in half its time."""

    def __init__(self, epoch_tokens, times):
        self.budget, self.tokens = Budget(seconds=60), int(times * epoch_tokens)

    def totals(self):
        return 10, self.tokens, 30.0

    def progress(self, **shown):
        return Progress(budget_fraction=0.5, message=shown.get("message"))


@pytest.mark.parametrize(("times", "warned"), [(1.9, 0), (3.9, 0), (4.5, 1)])
def test_a_budget_of_time_is_warned_of_once_the_text_was_read_often(here, times, warned):
    plan = make_plan(small_config(here, time=60, steps=None))
    messages = []
    monitor = cast(Monitor, FastMonitor(plan.epoch_tokens, times))
    reporter = Reporter(
        plan,
        creation.create(here / "runs", "r"),
        monitor,
        lambda progress: messages.extend(filter(None, [progress.message])),
    )
    reporter.warn_of_repetition()
    reporter.warn_of_repetition()
    assert len(messages) == warned
    assert all("is read 9 times in this budget" in message for message in messages)


@pytest.mark.parametrize(
    ("optimizer", "backend", "way"),
    [
        ({"optimizer": "muon"}, "mlx:cpu", "batch-size.*--orthogonalization-every 2, at a cost"),
        ({"optimizer": "muon"}, "mlx:gpu", "batch-size.*--orthogonalization-every 2, at a cost"),
        (
            {"optimizer": "muon", "orthogonalization_device": "cpu"},
            "mlx:gpu",
            "--orthogonalization-device worker lowers it",
        ),
        (
            {"optimizer": "muon", "orthogonalization_device": "worker"},
            "mlx:cpu",
            "--orthogonalization-device cpu lowers it",
        ),
        ({"optimizer": "soap"}, "mlx:cpu", "--precondition-every 20 lowers it"),
        ({"optimizer": "adamw"}, "mlx:cpu", "a larger --batch-size lowers it"),
    ],
)
def test_a_costly_optimizer_is_named_once_with_the_option_that_lowers_its_share(
    here, optimizer, backend, way
):
    costly = WorkerReport(
        slot=1, backend=backend, steps=50, compute_s=1.0, apply_s=0.6, optimizer_s=0.5
    )
    monitor = Mock(
        progress=lambda **shown: Progress(workers=(costly,), message=shown.get("message")),
        totals=lambda: (50, 100, 1.6),
    )
    messages = []
    plan = make_plan(small_config(here, **optimizer))
    reporter = Reporter(
        plan,
        creation.create(here / "runs", "r"),
        monitor,
        lambda progress: messages.extend(filter(None, [progress.message])),
    )
    reporter.append_metrics()
    reporter.append_metrics()
    (message,) = messages
    assert message.startswith(f"the optimizer {optimizer['optimizer']} takes 31 % of a step of ")
    assert re.search(rf"worker 1 \({backend}\); .*{way}", message)


@pytest.mark.parametrize(
    ("system", "has_blas", "optimizer", "notes"),
    [
        ("darwin", False, "muon", 1),
        ("darwin", True, "muon", 0),
        ("darwin", False, "adamw", 0),
        ("linux", False, "muon", 0),
    ],
)
def test_a_mac_without_accelerates_product_is_named(
    here, monkeypatch, system, has_blas, optimizer, notes
):
    monkeypatch.setattr(engines, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(engines, "ops", SimpleNamespace(has_blas=lambda: has_blas))
    plan = make_plan(small_config(here, optimizer=optimizer))
    named = [note for note in plan.notes if "has no cblas_sgemm; workers on GPUs" in note]
    assert len(named) == notes
