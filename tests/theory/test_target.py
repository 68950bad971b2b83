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
def run(tmp_path_factory):
    """The folder of a run, whose checkpoint is its best."""
    folder = Path(train(small_config(tmp_path_factory.mktemp("trained"), steps=8)).run)
    checkpoints.mark_best(Run(folder), checkpoint_of(folder))
    return folder


def checkpoint_of(run):
    return next((run / "checkpoints").glob("step-*"))


def test_an_architecture_or_options_of_training_and_flags_win(tmp_path):
    by_name = find_target("tiny", {}, tmp_path)
    assert (by_name.config.model, by_name.checkpoint) == ("tiny", None)
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL_MODEL)
    by_file = find_target(str(file), {"batch_size": (8, "--batch-size")}, tmp_path)
    assert (by_file.model.hidden_size, by_file.config.batch_size) == (32, 8)
    file.write_text("model: tiny\nlr: 1e-2\nbatch_size: 4\n")
    target = find_target(str(file), {"lr": (0.5, "--lr")}, tmp_path)
    assert (target.config.lr, target.config.batch_size) == (0.5, 4)


@pytest.mark.slow
@each_of("how", ["path", "name", "latest", "checkpoint", "best", "best's path"])
def test_a_run_brings_its_settings_its_checkpoint_and_its_architecture(run, how):
    step = checkpoint_of(run)
    spec = {
        "path": str(run),
        "name": run.name,
        "latest": "latest",
        "checkpoint": str(step),
        "best": "latest/best",
        "best's path": str(run / "checkpoints" / "best"),
    }[how]
    target = find_target(spec, {}, run.parent)
    assert (target.run, target.checkpoint) == (Run(run), step)
    assert (target.config.seq_len, target.model.hidden_size) == (32, 32)


@pytest.mark.slow
def test_a_checkpoint_alone_has_its_own_tokenizer_and_a_run_has_no_other(run, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(checkpoint_of(run), alone)
    target = find_target(str(alone), {}, run.parent)
    assert (target.run, target.checkpoint) == (None, alone)
    assert target.config.tokenizer == str(alone)
    other = find_target(str(run), {"tokenizer": ("bpe:300", "--tokenizer")}, run.parent)
    with pytest.raises(CheckpointError, match="use the same tokenizer"):
        plan_of(other, AnalyzeConfig())
    empty = tmp_path / "runs" / run.name
    shutil.copytree(run, empty)
    shutil.rmtree(empty / "checkpoints")
    (empty / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        find_target(str(empty), {}, empty.parent)


@each_of(
    ("spec", "message"),
    [
        ("tinny", "did you mean 'tiny'?"),
        ("models/7to1-tinny.yaml", "did you mean '7to1-tiny'?"),
        ("lastest", "did you mean 'latest'?"),
        ("qqqqqq", "architectures are .*tiny.*; runs: mlxhog runs"),
        ("latest/best", "there is no run in .* yet"),
        ("tinny/best", "did you mean 'tiny'?"),
    ],
)
def test_a_word_that_names_nothing_is_answered_with_the_nearest(tmp_path, spec, message):
    with pytest.raises((ConfigError, RunError), match=message):
        find_target(spec, {}, tmp_path)


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
def test_what_is_wrong_with_a_file_is_said(tmp_path_factory, text, message):
    file = tmp_path_factory.mktemp("file") / "conf.yaml"
    file.write_text(text)
    with pytest.raises(MlxhogError, match=message):
        find_target(str(file), {}, file.parent)
