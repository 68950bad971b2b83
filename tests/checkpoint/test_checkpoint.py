"""Checkpoints: what was saved comes back, transformers loads them, and runs locate them."""

import errno
import os

import numpy as np
import pytest
import torch
import transformers

from mlxhog.checkpoint import checkpoint
from mlxhog.data import tokenizers
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import CheckpointError, EnvironmentLacks, RunError
from mlxhog.models.families import init_params
from tests.checkpoint.conftest import PARAMS, STATE, model_of, names, save


def test_a_checkpoint_gives_back_what_was_saved(run):
    path = save(run)
    loaded = checkpoint.load(path)
    assert path == run.checkpoints / "step-00001000"
    assert (loaded.step, loaded.state) == (1000, STATE)
    assert loaded.params.keys() == PARAMS.keys()
    assert all(np.array_equal(loaded.params[name], array) for name, array in PARAMS.items())
    assert np.array_equal(loaded.optimizer["m.1"], np.arange(1000, dtype=np.float32))
    assert loaded.optimizer["steps"].tolist() == [3, 4]
    assert (loaded.optimizer["scalar"].shape, loaded.optimizer["scalar"]) == ((), 2.5)
    assert loaded.config["hidden_size"] == 64


def test_a_tokenizer_travels_with_the_checkpoint(run):
    tokenizer = tokenizers.train_bpe([b"the state of the union " * 9], 270)
    loaded = checkpoint.load(save(run, tokenizer=tokenizer))
    checkpoint.check_tokenizer(loaded, tokenizer)
    with pytest.raises(CheckpointError, match=rf"{tokenizer.sha256}.*{ByteTokenizer().sha256}"):
        checkpoint.check_tokenizer(loaded, ByteTokenizer())


def test_transformers_loads_a_checkpoint_and_computes_the_same_logits(run):
    sizes = model_of(128)
    config, params = sizes.to_dict(), init_params(sizes, seed=1)
    path = save(run, model_config=config, params=params)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    model, info = loaded
    assert type(model).__name__ == "xLSTMForCausalLM"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32

    direct = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config)
    )
    direct.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})
    tokens = torch.arange(40)[None] * 7 % 257
    with torch.no_grad():
        logits = model.eval()(tokens).logits
        assert torch.equal(logits, direct.eval()(tokens, use_cache=False).logits)


def test_transformers_generates_text_from_the_link_to_the_newest_checkpoint(run):
    save(run)
    model = transformers.AutoModelForCausalLM.from_pretrained(run.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model)
    prompt = tokenizer("The ", return_tensors="pt")
    assert prompt["input_ids"].tolist() == [[256, *b"The "]]
    assert model.generate(**prompt, max_new_tokens=5, do_sample=False).shape[1] > 5


# -- found -----------------------------------------------------------------------------------------


def test_latest_and_the_link_to_the_model_move_and_only_the_last_few_remain(run):
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        checkpoint.latest(run)
    for step in (10, 20, 30, 40):
        path = save(run, step, keep_last=2)
        assert checkpoint.latest(run) == run.model.resolve() == path
        assert checkpoint.load(run.model).step == step
    assert names(run) == ["latest", "step-00000030", "step-00000040"]
    moved = run.directory.rename(run.directory.with_name("moved"))
    assert (moved / "model" / "config.json").is_file()  # the link is relative


def test_a_link_that_cannot_move_leaves_the_one_before(run, monkeypatch):
    first = save(run, 1)
    replace = os.replace

    def refuse(source, target):
        if target == run.model:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(EnvironmentLacks, match="linking .*model failed: the disk reports an error"):
        save(run, 2)
    assert run.model.resolve() == first.resolve()
    assert not list(run.directory.glob("*.part"))


def test_a_checkpoint_is_found_by_its_path_or_by_its_run_and_with_its_run(run):
    first, path, root = save(run, 1), save(run, 2), run.directory.parent
    checkpoint.mark_best(run, first)
    for spec, expected in (
        (str(path), path), (str(run.directory), path), (run.name, path), (run.name[-3:], path),
        ("latest", path), (str(first), first), (f"{run.name}/best", first),
        (str(run.checkpoints / "best"), first),
    ):  # fmt: skip
        assert checkpoint.find(spec, root) == checkpoint.resumable(spec, root) == (run, expected)
    assert checkpoint.find(str(run.model), root) == (None, run.model)
    (first / "model.safetensors").unlink()
    assert checkpoint.locate(str(first), root) == first  # damaged, and no other is taken


def test_one_of_a_runs_checkpoints_is_chosen_by_its_name_where_none_is_named(run):
    first, root = save(run, 1), run.directory.parent
    path = save(run, 2)
    checkpoint.mark_best(run, path)
    assert checkpoint.locate("latest", root, "step-00000001") == first
    assert checkpoint.locate(run.name, root, "best").resolve() == path.resolve()
    for which in ("step-00000003", "..", "../checkpoints/step-00000001", ""):
        with pytest.raises(CheckpointError, match="it has step-00000001, step-00000002"):
            checkpoint.locate("latest", root, which)
    for spec in (str(path), str(run.model), f"{run.name}/best"):
        with pytest.raises(CheckpointError, match="--checkpoint is 'best'; name its run"):
            checkpoint.locate(spec, root, "best")


def test_what_is_neither_run_nor_checkpoint_is_named(run, tmp_path):
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run") as caught:
        checkpoint.locate(str(tmp_path), tmp_path / "runs")
    for needed in ("model.safetensors", "config.json", "run.json"):
        assert needed in str(caught.value)
    with pytest.raises(RunError, match="did you mean"):
        checkpoint.locate(f"{run.name}x", run.directory.parent)
