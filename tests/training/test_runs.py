"""Whole runs of several strategies and models, and what they leave."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.models import families
from mlxhog.optim import Muon
from mlxhog.report.record import RunRecord
from mlxhog.report.run_page import tiles
from mlxhog.training.plan import make_plan
from tests.training.small import (
    Messages,
    checkpoint_of,
    identical,
    mixed_model,
    parameters,
    small_config,
)

TWO = {"workers": "mlx:cpu*2"}


@pytest.mark.slow
def test_memory_of_a_run_is_freed_at_its_end_without_the_garbage_collector(tmp_path):
    gc.collect()
    gc.disable()
    try:
        before = sum(type(one) is Arena for one in gc.get_objects())
        train(small_config(tmp_path, steps=4))
        assert sum(type(one) is Arena for one in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_mixed_stack_learns_and_resumes_from_its_checkpoint(tmp_path, capsys):
    common = {"model": mixed_model(tmp_path), "eval_every": "1h", "steps": 40, **TWO}
    first = train(small_config(tmp_path, strategy="sync", **common))
    second = train(small_config(tmp_path, strategy="hogwild", resume=first.run, **common))
    assert (first.status, second.status) == ("done", "done")
    assert second.val_bits_per_byte < first.val_bits_per_byte < 7.0  # a uniform guess has 8.3
    config = families.read(checkpoint_of(second).config)
    assert (config.model_type, config.bos_token_id) == ("xlstm_v1", 256)
    assert parameters(second).keys() == families.param_spec(config).keys()
    words = ["generate", str(second.run), "--prompt", "lock ", "--temperature", "0", "--json"]
    answers = []
    for backend in ("torch:cpu", "mlx:cpu"):
        assert main([*words, "--max-new-tokens", "12", "--backend", backend]) == 0
        answers.append(json.loads(capsys.readouterr().out)["text"])
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_run_over_learnt_pieces_is_resumed_scored_and_loaded_by_transformers(tmp_path):
    minute = {"optimizer": "muon", "lr": None, "strategy": "serial", "seq_len": 16, "steps": 5}
    first = train(small_config(tmp_path, tokenizer="sotu", sample_every="1h", **minute))
    stored = yaml.safe_load((Path(first.run) / "config.yaml").read_text())
    assert (stored["tokenizer"], stored["optimizer"]["head_lr"]) == ("sotu", 2.4)
    assert str(first.sample).startswith("The")
    assert not str(first.sample).startswith("The  ")
    second = train(small_config(tmp_path, tokenizer="auto", resume=first.run, **minute))
    assert second.steps == 10
    tuned = {**minute, "model": "auto", "tokenizer": "auto", "init_from": first.run}
    plan = make_plan(small_config(tmp_path, **tuned))
    assert plan.config.lr == Muon().rates(32).lr  # its embedding is trained
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint_of(second).path)
    assert model.get_input_embeddings().weight.shape == (4096, 32)


@pytest.mark.slow
def test_a_run_is_reported_beside_counts_of_the_same_text(tmp_path, capsys):
    result = train(small_config(tmp_path, eval_every=10))
    assert result.counts_bits_per_byte < result.val_bits_per_byte
    line = f"{result.counts_bits_per_byte:.3f}: this network does not beat them"
    assert f"counts of 7 bytes, without a network, have {line}" in summary(result)
    assert main(["show", result.run]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    run = Run(Path(result.run))
    assert f"counts {result.counts_bits_per_byte:.3f}" in str(tiles(RunRecord(run)))
    assert run.read_metrics()[-1]["marks"]["counts"] == result.counts_bits_per_byte


@pytest.mark.slow
def test_averaged_runs_tell_of_every_copy_and_the_checkpoint_holds_the_average(tmp_path):
    messages = Messages()
    options = {"strategy": "avg_runs", "steps": 60, "lr": 1e-2, "eval_every": "1h", **TWO}
    result = train(small_config(tmp_path, **options), observer=messages)
    assert len(result.copies_bits_per_byte) == 2
    worse = result.val_bits_per_byte > min(result.copies_bits_per_byte)
    assert worse == any("averaging did not help" in message for message in messages)
    loaded = checkpoint_of(result)
    for name, value in loaded.params.items():
        copies = [loaded.optimizer[f"copies.{slot}/{name}"] for slot in (1, 2)]
        assert np.array_equal(value, (copies[0] + copies[1]) * np.float32(0.5))
    assert not np.array_equal(copies[0], copies[1])


@pytest.mark.slow
def test_a_run_on_divided_text_resumes_bit_for_bit_and_also_with_other_workers(tmp_path):
    common = {
        "strategy": "scaffold", "schedule": "constant", "warmup": 0, "average_every": 4,
        "split": "dirichlet", "split_alpha": 0.3, "clients": 3,
    }  # fmt: skip
    messages = Messages()
    whole = train(small_config(tmp_path, steps=30, **TWO, **common), observer=messages)
    assert any("divided among 3 clients" in message for message in messages)
    first = train(small_config(tmp_path, steps=13, **TWO, **common))
    second = train(small_config(tmp_path, steps=17, resume=first.run, **TWO, **common))
    assert identical(parameters(whole), parameters(second))
    batches = [8, 15, 7]  # worker 0 takes clients 0 and 2 in turn
    assert checkpoint_of(second).state["clients"] == batches
    third = train(
        small_config(tmp_path, steps=12, resume=second.run, workers="mlx:cpu*3", **common)
    )
    assert checkpoint_of(third).state["clients"] == [count + 4 for count in batches]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"steps": 40}, {"steps": None, "tokens": 6400}])
def test_a_run_can_start_synchronous_and_continue_lock_free_within_its_budget(tmp_path, budget):
    result = train(small_config(tmp_path, async_after=0.5, **TWO, **budget))
    assert result.status == "done"
    if budget["steps"]:
        assert result.steps >= 40
        assert result.tokens == 40 * 1.5 * 64  # as many as `mean_batches_per_step` says
    else:
        assert 6400 <= result.tokens < 6400 + 2 * 64
