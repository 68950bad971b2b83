"""CONFIG_OR_RUN: what a word may name."""

import shutil
from pathlib import Path

import pytest

from mlxhog.checkpoint import checkpoint as checkpoints
from mlxhog.checkpoint.run import Run
from mlxhog.errors import CheckpointError, MlxhogError
from mlxhog.experiments.target import find_target
from mlxhog.research import AnalyzeConfig
from mlxhog.research.analysis.analyze import plan_of
from mlxhog.training.supervisor.training import train
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
def test_a_run_brings_its_settings_its_checkpoint_and_its_architecture(run, tmp_path):
    step = checkpoint_of(run)
    for spec in (run, run.name, "latest", step, "latest/best", run / "checkpoints" / "best"):
        target = find_target(str(spec), {}, run.parent)
        assert (target.run, target.checkpoint) == (Run(run), step), spec
        assert (target.config.seq_len, target.model.hidden_size) == (32, 32)
    alone = tmp_path / "alone"
    shutil.copytree(step, alone)
    target = find_target(str(alone), {}, run.parent)
    assert (target.run, target.checkpoint) == (None, alone)
    assert target.config.tokenizer == str(alone)
    target = find_target(str(alone / "model.safetensors"), {}, run.parent)
    assert (target.config.model, target.model.hidden_size) == (str(alone), 32)
    other = find_target(str(run), {"tokenizer": ("bpe:300", "--tokenizer")}, run.parent)
    with pytest.raises(CheckpointError, match="use the same tokenizer"):
        plan_of(other, AnalyzeConfig())


@pytest.mark.slow
def test_of_a_run_that_ended_worse_the_best_checkpoint_is_analyzed(run, tmp_path):
    copy = Run(Path(shutil.copytree(run, tmp_path / run.name, symlinks=True)))
    last = checkpoint_of(copy.directory)
    first = Path(shutil.copytree(last, copy.checkpoints / "step-00000001"))
    checkpoints.mark_best(copy, first)
    status = copy.read_status()
    result = {**status["result"], "val_bits_per_byte": 2.0}
    best = {"bits_per_byte": 1.0, "step": 1, "noise": 0.1}
    copy.write_status({**status, "best": best, "result": result})
    assert find_target(copy.name, {}, tmp_path).checkpoint == first
    assert find_target(f"{copy.name}/latest", {}, tmp_path).checkpoint == last


@each_of(
    ("spec", "message"),
    [
        ("tinny", "did you mean 'tiny'?"),
        ("models/7to1-tinny.yaml", "did you mean '7to1-tiny'?"),
        ("qqqqqq", "architectures are .*tiny.*; runs: mlxhog runs"),
        ("latest/best", "there is no run in .* yet"),
        ("tinny/best", "did you mean 'tiny'?"),
        ("model: tiny\nbatch_sise: 4\nlr: 1\n", r"conf.yaml:2: no option 'batch_sise'"),
        ("model: tiny\nresume: latest\n", "analyze that run or checkpoint instead"),
        ("hidden_sise: 4\nnum_heads: 2\n", "hidden_sise"),
        ("{dim: 16, backbone: autoencoder, layers: [swiglu]}\n", "autoencoder"),
        ("\n", "is empty"),
    ],
)
def test_a_word_or_a_file_that_is_wrong_is_answered_with_the_way_out(
    tmp_path_factory, spec, message
):
    folder = tmp_path_factory.mktemp("file")
    if "\n" in spec:  # the content of a file
        (folder / "conf.yaml").write_text(spec)
        spec = str(folder / "conf.yaml")
    with pytest.raises(MlxhogError, match=message):
        find_target(spec, {}, folder)
