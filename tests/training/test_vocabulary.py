"""A run's vocabulary is its tokenizer's; a checkpoint's is fixed."""

import json
from pathlib import Path

import pytest

from mlxhog.config.config import TrainConfig
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan import make_plan
from mlxhog.training.run import train
from tests.training.small import SMALL_MODEL, small_config


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
