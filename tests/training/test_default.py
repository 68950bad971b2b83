"""`mlxhog train` without options: the tokenizer of the text, a model and step sizes that fit it."""

from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml

from mlxhog import TrainConfig, train
from mlxhog.checkpoint import checkpoint
from mlxhog.config.optimizers import Muon
from mlxhog.data import tokenizers
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan import make_plan
from tests.training.small import parameters, small_config


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
    saved = checkpoint.load(Path(str(second.checkpoint)))
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
