"""The model, vocabulary and step sizes of a run: of its text, its options, or a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml

from mlxhog import TrainConfig, train
from mlxhog.data import tokenizers
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.optim import Muon
from mlxhog.training.plan import make_plan
from tests.training.small import SMALL_MODEL, checkpoint_of, parameters, small_config


@pytest.mark.slow
def test_the_default_is_the_preset_of_a_minute_over_the_shipped_tokenizer(tmp_path):
    plan = make_plan(TrainConfig(out=str(tmp_path), workers="mlx:cpu"))
    stored = plan.stored
    assert (stored.model, stored.tokenizer) == ("minute", "sotu")
    assert plan.data.tokenizer.sha256 == tokenizers.SHIPPED_SHA256
    assert (plan.model.vocab_size, plan.model.bos_token_id, plan.parameters) == (4096, 0, 1_477_520)
    assert stored.lr == 0.0065
    assert isinstance(stored.optimizer, Muon)
    chosen = stored.optimizer
    assert (chosen.embedding_lr, chosen.head_lr, chosen.scalar_lr) == (12, 2.4, 1.5)
    assert not [note for note in plan.notes if "vocabulary" in note]


@pytest.mark.slow
def test_a_run_over_learnt_pieces_is_resumed_scored_and_loaded_by_transformers(tmp_path):
    minute = {"optimizer": "muon", "lr": None, "strategy": "serial", "seq_len": 16}
    first = train(small_config(tmp_path, tokenizer="sotu", sample_every="1h", **minute))
    stored = yaml.safe_load((Path(first.run) / "config.yaml").read_text())
    assert (stored["tokenizer"], stored["optimizer"]["head_lr"]) == ("sotu", 2.4)
    assert str(first.sample).startswith("The")
    assert not str(first.sample).startswith("The  ")
    second = train(small_config(tmp_path, tokenizer="auto", resume=first.run, **minute))
    assert second.steps == 40
    tuned = {**minute, "model": "auto", "tokenizer": "auto", "init_from": first.run}
    plan = make_plan(small_config(tmp_path, **tuned))
    assert plan.config.lr == Muon().default_lr(32)  # its embedding is trained
    saved = checkpoint_of(second)
    model = transformers.AutoModelForCausalLM.from_pretrained(saved.path)
    assert model.get_input_embeddings().weight.shape == (4096, 32)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["hogwild", "sync", "avg_runs"])
def test_a_first_step_moves_each_group_by_its_factor(tmp_path, strategy):
    options = {
        "strategy": strategy, "schedule": "constant", "warmup": 0, "steps": 1, "seed": 0,
    }  # fmt: skip
    plain, grouped = (
        parameters(train(small_config(tmp_path, **options, **factors)))
        for factors in ({}, {"embedding_lr": 4.0, "scalar_lr": 0.5})
    )
    model = load_architecture(tmp_path / "small.yaml")
    groups, before = families.rate_groups(model), families.init_params(model, seed=0)
    for name, start in before.items():
        factor = {name in groups["embedding"]: 4.0, name in groups["scalar"]: 0.5}.get(True, 1.0)
        expected = start + factor * (plain[name] - start)
        np.testing.assert_allclose(grouped[name], expected, rtol=1e-5, atol=1e-6)


def notes(plan):
    """The messages of a run on its vocabulary."""
    words = ("vocabulary", "learnt")
    return [note for note in plan.notes if any(word in note for word in words)]


def stored(tmp_path, vocab_size):
    """The folder of a checkpoint with this vocabulary size."""
    model = tmp_path / "checkpoint.yaml"
    model.write_text(SMALL_MODEL.replace("320", str(vocab_size)))
    folder = tmp_path / f"checkpoint-{vocab_size}"
    folder.mkdir()
    fields = load_architecture(model).to_dict()
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize(
    ("own", "options", "size", "said"),
    [
        (320, {}, 320, ""),
        (257, {}, 320, "vocabulary 320, that of tokenizer bytes, in place of 257 of model small"),
        (
            50_304,
            {},
            320,
            "vocabulary 320, that of tokenizer bytes, in place of 50,304 of model",
        ),
        (320, {"set": "vocab_size=640, hidden_size=64"}, 640, ""),
        (320, {"set": "vocab_size=100"}, None, "set vocab_size to at least 257"),
    ],
)
def test_a_vocabulary_becomes_the_tokenizers_unless_it_is_asked_for(
    tmp_path, own, options, size, said
):
    config = small_config(tmp_path, **options)
    Path(config.model).write_text(SMALL_MODEL.replace("vocab_size: 320", f"vocab_size: {own}"))
    if size is None:
        with pytest.raises(ConfigError, match=said):
            make_plan(config)
        return
    plan = make_plan(config)
    assert (plan.model.vocab_size, plan.model.bos_token_id) == (size, 256)
    assert len(notes(plan)) == bool(said)
    assert all(said in note for note in notes(plan))


def test_a_learnt_tokenizer_brings_as_many_rows_as_it_has_ids(tmp_path):
    config = small_config(tmp_path, tokenizer="bpe:4000")
    Path(config.model).write_text(SMALL_MODEL.replace("vocab_size: 320", "vocab_size: 1000"))
    plan = make_plan(config)
    assert plan.model.vocab_size == plan.data.tokenizer.vocab_size < 4000
    assert plan.model.bos_token_id == plan.data.tokenizer.bos
    short, fitted = sorted(notes(plan))
    assert short.startswith("tokenizer bpe:4000 learnt ")
    assert f"vocabulary {plan.model.vocab_size:,}" in fitted


def test_a_checkpoints_vocabulary_is_kept_and_refused_where_it_is_too_small(tmp_path):
    plan = make_plan(small_config(tmp_path, model=stored(tmp_path, 512)))
    assert plan.model.vocab_size == 512
    (note,) = notes(plan)
    assert "keeps its vocabulary of 512; tokenizer bytes needs 320 of it" in note
    small = stored(tmp_path, 256)
    with pytest.raises(ConfigError, match=r"has vocab_size 256, .*--set vocab_size=320\)"):
        make_plan(small_config(tmp_path, model=small, set=None))
    grown = make_plan(small_config(tmp_path, model=small, set="vocab_size=320"))
    assert grown.model.vocab_size == 320


@pytest.mark.slow
def test_a_resumed_run_keeps_its_vocabulary_and_its_changed_fields(tmp_path):
    config = small_config(tmp_path, tokenizer="bpe:300", set="hidden_size=64", steps=2)
    first = train(config)
    plan = make_plan(TrainConfig(**{**vars(config), "resume": first.run, "steps": 2}))
    assert (plan.model.vocab_size, plan.model.hidden_size) == (320, 64)
    assert not notes(plan)
    other = {**vars(config), "resume": first.run, "set": "hidden_size=32"}
    with pytest.raises(CheckpointError, match=r"hidden_size.*64.*32"):
        make_plan(TrainConfig(**other))
    other = {**vars(config), "resume": first.run, "set": "hidden_size=64, vocab_size=640"}
    with pytest.raises(CheckpointError, match=r"vocab_size.*320.*640"):
        make_plan(TrainConfig(**other))
