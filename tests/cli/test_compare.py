"""`mlxhog compare` through the real command: verdicts, refusals, interruption and continuation."""

import json
import math
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest

from mlxhog.checkpoint import new_run
from mlxhog.checkpoint import run as runs
from mlxhog.config.config import TrainConfig
from mlxhog.data import prepare, textfiles
from mlxhog.errors import ConfigError, DataError
from mlxhog.experiments.api import _side, find_side
from mlxhog.experiments.pairs import Comparison, RunPair
from mlxhog.optim import AdamW
from mlxhog.training.supervisor.training import train
from tests.another_process import Program
from tests.cli.command import refused, said, told
from tests.display.sample_run import write_run
from tests.pairs import each_of
from tests.threads import wait_until
from tests.training.small import small_config


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The arguments for a small model, its text and one worker, in a new folder."""
    monkeypatch.chdir(tmp_path)
    config = small_config(tmp_path)
    small = ["--seq-len", "32", "--batch-size", "2", "--workers", "mlx:cpu", "--threads", "1"]
    budget = ["--optimizer", "adamw", "--tokens", "3k", "--val-subset-tokens", "1k"]
    return [config.model, "--data", config.data, *small, *budget]


@pytest.fixture
def compare(words, capsys):
    """Compare with further arguments; return the JSON and stderr."""

    def run(*more):
        out, err = said(capsys, "compare", *words, *more, "--json")
        return json.loads(out), err

    return run


@pytest.mark.slow
def test_a_better_step_size_is_told_early_and_again_at_once(
    compare, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(prepare, "SETTLED_S", -60.0)
    monkeypatch.setattr(textfiles, "documents", reads := Mock(wraps=textfiles.documents))
    sides = ["--a", "--lr 1e-2", "--b", "--lr=1e-5", "--pairs", "5"]
    result, err = compare(*sides)
    files = {call.args[0] for call in reads.call_args_list}
    assert reads.call_count == 2 * len(files)  # to scan the text, and to write its tokens
    assert result["verdict"] == "a"
    assert result["answer"].startswith("A is better by ")
    assert 0 < result["interval"][0] < result["difference"] < result["interval"][1]
    assert result["pairs_used"] == len(result["pairs"]) == err.count("B - A +") == 3
    assert result["differing"] == {"lr": [0.01, 1e-05]}
    assert result["p_value"] is None
    assert "fixed before" in result["p_value_reason"]
    assert result["validation"]["tokens"] == {"a": 1024, "b": 1024}  # 1,000 are 32 sequences
    pairs = [(pair["seed"], pair["first"]) for pair in result["pairs"]]
    assert pairs == [(1, "a"), (2, "b"), (3, "a")]
    assert {pair[side]["tokens"] for pair in result["pairs"] for side in "ab"} == {3008}

    again, err = compare(*sides)
    assert again == result
    assert "3 pairs are done already" in err
    folder = tmp_path / result["folder"]
    assert len(list((folder / "runs").iterdir())) == 6
    assert not list(folder.glob("runs/*/checkpoints"))
    text = said(capsys, "compare", *words, *sides).out
    for message in (
        "A is better by ",
        "lr A 0.01, B 1e-05",
        "times as fast",
        "99 % sure",
        "no p-value",
    ):
        assert message in text
    other = ("compare", *words, *sides[:-1], "4", "--folder", folder)
    refused(capsys, "holds another comparison", *other)


@each_of(("bits", "counted"), [(3.0, 3.0), (9.5, 8.0), (float("nan"), 8.0), (float("inf"), 8.0)])
def test_a_run_worse_than_a_guess_is_no_better_than_one_that_diverged(bits, counted):
    child = SimpleNamespace(call=lambda *_: (np.array([bits * math.log(2)]), np.array([1])))
    ended = Mock(status="done", run="runs/a", checkpoint="runs/a/checkpoints/last")
    scored = Comparison._scored(MagicMock(), child, "a", ended)
    assert scored.bits_per_byte == pytest.approx(counted)


@pytest.mark.slow
def test_what_repeats_cannot_be_told_a_damaged_record_is_named_and_a_diverged_run_counts(
    compare, words, capsys, monkeypatch
):
    result, _ = compare("--pairs", "2")
    assert result["verdict"] == "inconclusive"
    assert "ended equal in every pair" in result["answer"]
    assert result["notes"] == ["A and B have the same options"]
    record = Path(result["folder"]) / "pairs.jsonl"
    whole = record.read_text()
    record.write_text(whole.replace('"seed"', '"sead"', 1))
    damaged = "is damaged after 0 pairs ('seed' is missing)"
    refused(capsys, damaged, "compare", *words, "--pairs", "2")
    record.write_text(whole + '{"seed": 3, "fir')  # torn by a kill: ignored
    again, _ = compare("--pairs", "2")
    assert again == result
    # as on a busy machine, whose speeds have an interval beyond float64
    monkeypatch.setattr(RunPair, "log_speed", property(lambda pair: 20.0 * (-1) ** pair.seed))
    diverged, _ = compare("--a", "--optimizer sgd --lr 1e30 --clip 0", "--pairs", "2")
    assert {pair["a"]["bits_per_byte"] for pair in diverged["pairs"]} == {8.0}  # knows nothing
    assert any("A diverged in 2 of 2 runs" in note for note in diverged["notes"])
    assert diverged["speed"]["interval"] == [0.0, None]


def test_files_runs_and_names_are_sides_and_a_folder_of_runs_is_refused(tmp_path, words, capsys):
    root = tmp_path / "runs"
    mine = write_run(root, "mine")
    others = "or runs that no comparison made"
    refused(capsys, others, "compare", *words, "--pairs", "2", "--folder", ".")
    assert [one.name for one in runs.list_runs(root)] == [mine.name]

    result = train(small_config(tmp_path, steps=2))
    (tmp_path / "mine.yaml").write_text("model: tiny\nlr: 0.5\n")
    assert find_side(None, [], root).config.model == "minute"
    assert find_side("tiny.yaml", [], root).config.model == "tiny"  # no such file here
    assert find_side("mine.yaml", [], root).config.lr == 0.5
    assert find_side(words[0], [], root).config.model == words[0]
    begun = find_side(None, [{"init_from": (Path(result.run).name, "--b")}], root).config
    assert begun.init_from == result.checkpoint
    of_object = _side(TrainConfig(init_from="latest"), {}, root).config  # not of a pair's runs
    assert of_object.init_from == result.checkpoint
    of_run = find_side(Path(result.run).name, [], root)
    assert of_run.title == Path(result.run).name
    assert of_run.config.model == str(Path(result.run) / "model")
    assert of_run.config.optimizer == AdamW(beta1=0.9)
    assert of_run.config.lr is not None
    stored = Path(result.run) / "config.yaml"  # as of a run that was resumed with --follow
    stored.write_text(re.sub("^follow: .*", "follow: new", stored.read_text(), flags=re.M))
    assert find_side(Path(result.run).name, [], root).config.follow is None
    of_muon = find_side(Path(result.run).name, [{"optimizer": ("muon", "--b")}], root)
    assert of_muon.config.lr is None  # its own, not that of the run's optimizer


def test_a_run_that_trained_in_a_cluster_is_a_side_that_trains_alone(tmp_path):
    stored = new_run.create(tmp_path, "old")
    own = {"cluster": "10.0.0.1:8600", "round_every": 5, "cluster_machine": "ada"}
    stored.config_path.write_text(TrainConfig(**own).to_yaml())
    config = find_side(stored.name, [], tmp_path).config
    assert (config.cluster, config.round_every, config.cluster_machine) == (None, 10.0, None)


def test_a_run_is_a_side_from_any_folder_whose_text_is_where_it_was_or_is_named(
    tmp_path, monkeypatch
):
    text = tmp_path / "notes"
    text.mkdir()
    stored = new_run.create(tmp_path / "runs", "old")
    stored.config_path.write_text(TrainConfig(data="notes").to_yaml())
    stored.write_status({"status": "done", "data_path": str(text)})
    monkeypatch.chdir(stored.directory)
    assert find_side(str(stored.directory), [], tmp_path).config.data == str(text)
    text.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="is not at .*notes; .*--data PATH"):
        find_side(str(stored.directory), [], tmp_path)
    moved = {"data": ("../../moved", "--data")}
    assert find_side(str(stored.directory), [moved], tmp_path).config.data == "../../moved"


@each_of("values", [{"resume": "latest"}, {"follow": "new"}, {"cluster": "10.0.0.1:8600"}])
def test_a_side_that_would_not_start_from_the_beginning_is_refused(values, tmp_path):
    for title, side in (("config", TrainConfig(**values)), ("defaults", values)):
        message = f"^{title}: {next(iter(values))}: both sides start from the beginning, .*leave it"
        with pytest.raises(ConfigError, match=message):
            _side(side, {}, tmp_path)


def test_both_sides_take_equally_many_steps_whatever_a_step_has(words, capsys):
    at = words.index("--tokens")
    words[at : at + 2] = ["--steps", "3"]
    result = told(capsys, "compare", *words, "--b", "--batch-size 4", "--pairs", "2")
    assert [pair[side]["steps"] for pair in result["pairs"] for side in "ab"] == [3] * 4
    assert result["budget"] == {"time_s": None, "tokens": None, "steps": 3}
    assert "a step of A has 64 tokens, of B 128" in result["notes"]
    words[-1] = "1M"
    result = told(capsys, "compare", *words, "--b", "--tokenizer bpe:300", "--pairs", "2")
    tokens = result["validation"]["tokens"]  # of each tokenizer, as many as there are
    assert 0 < tokens["b"] < tokens["a"] < 10_000


def never_end_the_second_pair():
    """In the process of a command: let the runs of that pair train until a signal ends them."""
    settings = Comparison.settings

    def endless(comparison, letter, number):
        config = settings(comparison, letter, number)
        return replace(config, tokens=10**9) if number == 2 else config

    Comparison.settings = endless


@pytest.mark.slow
def test_pairs_that_are_done_survive_every_end_of_the_command(compare, words):
    """First that of Ctrl-C, then that of the command that continues, which is killed."""
    for ending in (signal.SIGINT, signal.SIGKILL):
        with Program(
            "compare", *words, "--pairs", "2", before=never_end_the_second_pair
        ) as process:
            assert any(line.startswith("pair 2 of 2") for line in process.stderr)
            wait_until(lambda: list(Path("comparisons").glob("*/runs/*-pair-02-b/run.json")))
            process.send_signal(ending)
            rest = process.stderr.read()
            assert process.wait(120) == (130 if ending == signal.SIGINT else -ending)
        assert (ending != signal.SIGINT) or "interrupted; 1 of 2 pairs are kept" in rest
        (record,) = Path("comparisons").glob("*/pairs.jsonl")
        first = record.read_text()
        assert first.count("\n") == 1
    result, err = compare("--pairs", "2")
    assert "1 pairs are done already" in err
    assert record.read_text().startswith(first)
    assert len(result["pairs"]) == 2
    assert len(list(record.parent.joinpath("runs").iterdir())) == 4  # removed
