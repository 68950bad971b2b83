"""Runs on examples of prompt and completion, and on conversations: their models answer."""

import json

import pytest

import mlxhog
from mlxhog import train
from mlxhog.cli.train import summary
from mlxhog.data import conversations
from mlxhog.training.plan import make_plan
from tests.training.small import Messages, largest_difference, parameters, small_config

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
        {"strategy": "hogwild", "workers": "mlx:cpu*2", "grad_accumulation": 2},
        {"strategy": "sync", "workers": "mlx:cpu*2", "context": "trained"},
        {"strategy": "local_sgd", "workers": "mlx:cpu*2", "average_every": 5,
         "split": "dirichlet", "split_alpha": 100.0},
    ],
    ids=["hogwild", "sync", "local_sgd"],
)  # fmt: skip
def test_every_strategy_learns_completions(tmp_path, options):
    config = config_of(tmp_path, steps=60, lr=1e-2, eval_every=1000, **options)
    result = train(config)
    assert (result.status, result.steps) == ("done", 60)
    assert result.val_of_completions
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 4.0  # of 8 at the start
    assert "bits per byte of completions" in summary(result)


@pytest.mark.slow
def test_micro_batches_weigh_by_their_labels_as_one_batch_would(tmp_path):
    def run(batch_size, accumulation):
        return train(
            config_of(
                tmp_path, steps=3, strategy="serial", optimizer="sgd", lr=0.1, clip=0.0,
                batch_size=batch_size, grad_accumulation=accumulation,
            )
        )  # fmt: skip

    assert largest_difference(parameters(run(4, 1)), parameters(run(2, 2))) < 1e-6


@pytest.mark.slow
def test_tokens_of_examples_are_steps_of_their_mean_length(tmp_path):
    plan = make_plan(config_of(tmp_path, steps=None, tokens=5000))
    train_file, _ = plan.data.open(32)
    rows = train_file.rows(32)
    assert rows is not None
    assert plan.budget.tokens is None
    assert plan.budget.steps == pytest.approx(5000 / (2 * rows.length.mean()), abs=1)
    counted = train(config_of(tmp_path, steps=None, tokens=5000))
    assert counted.tokens == pytest.approx(5000, rel=0.1)  # padding is none


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
        for messages in (TALK[:1], [*TALK, *TALK[:1]]):
            text = model.generate(
                conversations.prompt(messages),
                stop=conversations.STOPS,
                temperature=0.0,
                max_new_tokens=50,
            )
            assert text == " one"
    template = (tmp_path / result.run / "model" / "chat_template.jinja").read_text()
    assert template == conversations.TEMPLATE
