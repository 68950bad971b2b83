"""Whole runs of several strategies and models, and what they leave."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml

import mlxhog
from mlxhog.arena import Arena
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.data import conversations
from mlxhog.data.texts import package_file
from mlxhog.models import families
from mlxhog.optim import Muon
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.supervisor.session import Session
from mlxhog.training.supervisor.training import train
from tests.training.small import (
    Messages,
    checkpoint_of,
    identical,
    largest_difference,
    mixed_model,
    parameters,
    sample_prompt,
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
        assert sum(type(one) is Arena for one in gc.get_objects()) <= before
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_mixed_stack_learns_and_resumes_from_its_checkpoint(tmp_path, capsys):
    common = {"model": mixed_model(tmp_path), "eval_every": "1h", "steps": 40, **TWO}
    first = train(small_config(tmp_path, strategy="sync", **common))
    second = train(small_config(tmp_path, strategy="hogwild", resume=first.run, **common))
    assert (first.status, second.status) == ("done", "done")
    assert second.val_bits_per_byte < first.val_bits_per_byte < 7.0  # a uniform guess has 8.3
    config = checkpoint_of(second).model
    assert (config.model_type, config.bos_token_id) == ("xlstm_v1", 256)
    assert parameters(second).keys() == families.param_spec(config).keys()
    words = ["generate", str(second.run), "--prompt", "lock ", "--temperature", "0", "--json"]
    answers = []
    for backend in ("torch:cpu", "mlx:cpu"):
        assert main([*words, "--max-new-tokens", "12", "--backend", backend]) == 0
        answers.append(json.loads(capsys.readouterr().out)["text"])
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_run_over_learned_subwords_is_resumed_scored_and_loaded_by_transformers(tmp_path):
    minute = {"optimizer": "muon", "lr": None, "strategy": "serial", "seq_len": 16, "steps": 5}
    first = train(small_config(tmp_path, tokenizer="sotu", sample_every="1h", **minute))
    stored = yaml.safe_load((Path(first.run) / "config.yaml").read_text())
    assert (stored["tokenizer"], stored["embedding_init"]) == ("sotu", "auto")
    prompt = sample_prompt(first)
    assert str(first.sample).startswith(prompt)
    assert not str(first.sample).startswith(f"{prompt}  ")
    second = train(small_config(tmp_path, tokenizer="auto", resume=first.run, **minute))
    assert second.steps == 10
    tuned = {**minute, "model": "auto", "tokenizer": "auto", "init_from": first.run}
    plan = make_plan(small_config(tmp_path, **tuned))
    assert plan.config.lr == Muon().default_lr(32)  # its embedding is trained
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint_of(second).path)
    assert model.get_input_embeddings().weight.shape == (8192, 32)


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
@pytest.mark.parametrize(
    "budget",
    [
        {"steps": 40},
        {"steps": None, "tokens": 6400},
        # over more than an epoch, whose last ticket has fewer sequences
        {"steps": None, "tokens": 81920, "batch_size": 64},
    ],
)
def test_a_run_can_start_synchronous_and_continue_lock_free_within_its_budget(tmp_path, budget):
    result = train(small_config(tmp_path, async_after=0.5, **TWO, **budget))
    assert result.status == "done"
    if budget["steps"]:
        assert result.steps >= 40
        assert result.tokens == 40 * 1.5 * 64  # as many as `mean_batches_per_step` says
    else:
        of_step = 2 * 32 * budget.get("batch_size", 2)
        assert 0 <= result.tokens - budget["tokens"] < of_step


COLOURS = ["red", "blue", "green", "black", "white", "gold"]


def config_of(folder, **options):
    """Options of a small run on pairs of colours; the completion is the second and the first."""
    data = folder / "colours.jsonl"
    pairs = [(a, b) for a in COLOURS for b in COLOURS]
    records = [{"prompt": f"{'mix ' * (k % 4)}{a} {b}: ", "completion": f"{b}{a}."}
               for k, (a, b) in enumerate(pairs * 3)]  # fmt: skip
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    return small_config(folder, **{"data": str(data), **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "hogwild", "grad_accumulation": 2},
        {"strategy": "sync", "context": "trained"},
        {"strategy": "local_sgd", "average_every": 5, "split": "dirichlet", "split_alpha": 100.0},
    ],
    ids=lambda options: options["strategy"],
)
def test_every_strategy_learns_completions(tmp_path, options):
    config = config_of(tmp_path, steps=60, lr=1e-2, eval_every=1000, **TWO, **options)
    result = train(config)
    assert (result.status, result.steps) == ("done", 60)
    assert result.val_of_completions
    assert result.val_bits_per_byte < 4.0  # of 8 at the start
    assert "bits per byte of completions" in summary(result)


@pytest.mark.slow
def test_micro_batches_weigh_by_their_targets_as_one_batch_would(tmp_path):
    options = {"steps": 3, "strategy": "serial", "optimizer": "sgd", "lr": 0.1, "clip": 0.0}
    one, other = (
        parameters(train(config_of(tmp_path, batch_size=size, grad_accumulation=n, **options)))
        for size, n in ((4, 1), (2, 2))
    )
    assert largest_difference(one, other) < 1e-6


@pytest.mark.slow
def test_a_budget_in_tokens_of_examples_counts_no_padding(tmp_path):
    counted = train(config_of(tmp_path, steps=None, tokens=5000))
    assert counted.tokens == pytest.approx(5000, rel=0.1)


TALK = [{"role": "user", "content": "say one"}, {"role": "assistant", "content": "one"}]


@pytest.mark.slow
def test_a_run_on_one_conversation_answers_it_and_exports_its_template(tmp_path):
    data = tmp_path / "chat.jsonl"
    data.write_text(json.dumps({"messages": TALK * 2}) + "\n")
    notes = Messages()
    config = small_config(tmp_path, data=str(data), steps=80, context="trained", lr=0.01)
    result = train(config, observer=notes)
    assert any("evaluations are of the training text" in note for note in notes)
    assert "training examples" in (result.val_text or "")
    with mlxhog.load(result.run) as model:
        how = {"stop": conversations.STOPS, "temperature": 0.0, "max_new_tokens": 50}
        for messages in (TALK[:1], [*TALK, *TALK[:1]]):
            assert model.generate(conversations.prompt(messages), **how) == " one"
    template = (tmp_path / result.run / "model" / "chat_template.jinja").read_text()
    assert template == package_file("chat_template.jinja").decode()


@pytest.mark.slow
def test_mlx_and_torch_workers_train_one_set_of_parameters_side_by_side(tmp_path, monkeypatch):
    def both_have_trained(run):
        return run.steps_done() >= 120 and all(handle.entry.steps for handle in run.workers.handles)

    monkeypatch.setattr(Session, "budget_is_used", both_have_trained)
    options = {"steps": 100_000, "lr": 1e-2, "schedule": "constant", "warmup": 0}
    result = train(small_config(tmp_path, workers="mlx:cpu,torch:cpu", eval_every="1h", **options))
    assert result.status == "done"
    assert sum(worker.steps for worker in result.workers) == result.steps
    assert result.lost_update_rate == 0.0  # lossless is the default
    # words of five letters and spaces: far below the 8 bits of a uniform guess
    assert result.val_bits_per_byte < 3.0
    baselines = Run(Path(result.run)).read_metrics()[-1]["baselines"]
    assert 0 < result.ngram_bits_per_byte == baselines["n-gram"]
