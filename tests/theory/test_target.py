"""CONFIG_OR_RUN: what a word may name."""

import shutil
from pathlib import Path

import pytest

from mlxhog.checkpoint import checkpoint as checkpoints
from mlxhog.checkpoint.run import Run
from mlxhog.errors import CheckpointError, ConfigError, MlxhogError, RunError
from mlxhog.theory.analysis import AnalyzeConfig
from mlxhog.theory.analysis.analyze import plan_of
from mlxhog.theory.target import find_target
from mlxhog.training.run import train
from tests.pairs import each_of
from tests.training.small import SMALL_MODEL, small_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run."""
    return Path(train(small_config(tmp_path_factory.mktemp("trained"), steps=8)).run)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that may be spoilt."""
    copy = tmp_path / "runs" / trained.name
    shutil.copytree(trained, copy)
    return copy


def test_an_architecture_by_name_and_by_file_is_trained_with_the_defaults(tmp_path):
    by_name = find_target("tiny", {}, tmp_path)
    assert (by_name.config.model, by_name.checkpoint) == ("tiny", None)
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL_MODEL)
    by_file = find_target(str(file), {"batch_size": (8, "--batch-size")}, tmp_path)
    assert by_file.model.hidden_size == 32
    assert by_file.config.batch_size == 8


def test_a_file_of_training_options_names_its_model_and_flags_win(tmp_path):
    file = tmp_path / "conf.yaml"
    file.write_text("model: tiny\nlr: 1e-2\nbatch_size: 4\n")
    target = find_target(str(file), {"lr": (0.5, "--lr")}, tmp_path)
    assert (target.config.lr, target.config.batch_size) == (0.5, 4)
    assert target.title == f"settings {file}"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["path", "name", "latest", "checkpoint", "best", "best's path"])
def test_a_run_brings_its_settings_its_checkpoint_and_its_architecture(run, how):
    step = next((run / "checkpoints").glob("step-*"))
    checkpoints.mark_best(Run(run), step)
    spec = {
        "path": str(run),
        "name": run.name,
        "latest": "latest",
        "checkpoint": str(step),
        "best": "latest/best",
        "best's path": str(run / "checkpoints" / "best"),
    }[how]
    target = find_target(spec, {}, run.parent)
    assert target.run == Run(run)
    assert target.checkpoint == step
    assert target.config.seq_len == 32
    assert target.model.hidden_size == 32


@pytest.mark.slow
def test_a_checkpoint_alone_is_analyzed_with_its_own_tokenizer(run, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(next((run / "checkpoints").glob("step-*")), alone)
    target = find_target(str(alone), {}, run.parent)
    assert target.run is None
    assert target.checkpoint == alone
    assert target.config.tokenizer == str(alone)


@each_of(
    ("spec", "message"),
    [
        ("tinny", "did you mean 'tiny'?"),
        ("models/7to1-tinny.yaml", "did you mean '7to1-tiny'?"),
        ("lastest", "did you mean 'latest'?"),
        ("qqqqqq", "architectures are .*tiny.*; runs: mlxhog runs"),
        ("latest", "there is no run in .* yet"),
        ("latest/best", "there is no run in .* yet"),
        ("tinny/best", "did you mean 'tiny'?"),
    ],
)
def test_a_word_that_names_nothing_is_answered_with_the_nearest(tmp_path, spec, message):
    with pytest.raises((ConfigError, RunError), match=message):
        find_target(spec, {}, tmp_path)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_says_so(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        find_target(str(run), {}, run.parent)


@pytest.mark.slow
def test_a_run_is_not_analyzed_on_tokens_of_another_tokenizer(run):
    target = find_target(str(run), {"tokenizer": ("bpe:300", "--tokenizer")}, run.parent)
    with pytest.raises(CheckpointError, match="use the same tokenizer"):
        plan_of(target, AnalyzeConfig())


@each_of(
    ("text", "message"),
    [
        ("model: tiny\nbatch_sise: 4\nlr: 1\n", r"conf.yaml:2: no option 'batch_sise'"),
        ("model: tiny\nresume: latest\n", "analyze that run or checkpoint instead"),
        ("hidden_sise: 4\nnum_heads: 2\n", "hidden_sise"),
        ("version: 1\nmodel: {dim: 16, backbone: autoencoder, layers: [swiglu]}\n", "autoencoder"),
        ("a: [1\n", "cannot be parsed"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    file = tmp_path / "conf.yaml"
    file.write_text(text)
    with pytest.raises(MlxhogError, match=message):
        find_target(str(file), {}, tmp_path)
