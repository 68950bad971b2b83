"""A run that begins with the weights of a checkpoint: kept and new rows, and refusals."""

from pathlib import Path

import numpy as np
import pytest

from mlxhog import TrainConfig, train
from mlxhog.checkpoint import formats
from mlxhog.cli import main
from mlxhog.data import tokenizers
from mlxhog.errors import CheckpointError, DataError, MlxhogError
from mlxhog.models import families
from mlxhog.models.families import init_params
from mlxhog.training.plan.decide import make_plan
from tests.training.small import SMALL_MODEL, filled, mixed_model, small_config


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with a small run."""
    folder = tmp_path_factory.mktemp("before")
    return folder, train(small_config(folder, steps=10, name="first"))


def tuned(before, **options):
    """Options of a run that begins with that run's weights, on text of its own."""
    folder, first = before
    text = folder / "new"
    text.mkdir(exist_ok=True)
    for k in range(6):
        (text / f"{k}.txt").write_text(f"other words stand here, {k} after another. " * 20)
    defaults = {"init_from": first.run, "model": "auto", "data": str(text), "steps": 4}
    return small_config(folder, **{**defaults, **options})


def planned(config):
    with filled(config) as (plan, arena, _):
        return plan, {name: np.array(arena.param(name)) for name in arena.layout.slots}


def weights(path):
    return {name: np.array(value) for name, value in formats.open(path).tensors.items()}


@pytest.mark.parametrize("by", ["run", "checkpoint", "transformers"])
def test_a_run_begins_with_the_weights_alone(before, by):
    folder, first = before
    spec = {"run": "latest", "checkpoint": first.checkpoint, "transformers": f"{folder}/hf"}[by]
    if by == "transformers":
        assert main(["convert", first.checkpoint, spec, "--format", "hf"]) == 0
    (plan, begin), saved = planned(tuned(before, init_from=spec)), weights(first.checkpoint)
    assert all(np.array_equal(begin[name], saved[name]) for name in saved)
    assert plan.resumption is None
    assert plan.data.tokenizer.name == "bytes"
    assert "begins with the weights of" in plan.notes[0]
    assert ("(step 10)" in plan.notes[0]) == (by != "transformers")


@pytest.mark.parametrize(("name", "is_noted"), [("second", True), ("first", False), (None, False)])
def test_a_resumed_run_keeps_its_name_and_says_so_where_another_is_given(before, name, is_noted):
    folder, first = before
    plan = make_plan(small_config(folder, resume=first.run, name=name))
    note = f"it keeps its name, {Path(first.run).name}: --name {name} is for a new run"
    assert (note in plan.notes) == is_noted
    assert plan.stored.name == "first"


@pytest.mark.slow
def test_the_run_names_its_initial_weights_and_resumes_and_repeats_without_asking(before):
    _, first = before
    result = train(tuned(before, init_from="latest"))
    stored = (Path(result.run) / "config.yaml").read_text()
    assert f"init_from: {first.checkpoint}" in stored
    assert "model: auto" in stored
    assert main(["train", "--resume", result.run, "--steps", "3", "--quiet"]) == 0
    assert (Path(result.run) / "config.yaml").read_text().count("init_from: /") == 1
    again = TrainConfig(resume=result.run, runs_dir=str(before[0]), steps=2, workers="mlx:cpu",
                        data=tuned(before).data, seq_len=32)  # fmt: skip
    assert make_plan(again).model.hidden_size == 32


@pytest.mark.slow
def test_the_base_model_is_scored_before_the_first_step(before):
    lines = []
    result = train(tuned(before, lr=1e-9, eval_every=2), observer=lines.append)
    assert result.base_bits_per_byte == pytest.approx(result.val_bits_per_byte, abs=1e-4)
    assert any("before the first step the base model has" in str(one.message) for one in lines)


def test_rows_of_tokens_with_the_same_text_are_kept_and_others_begin_anew(before):
    _, first = before
    config = tuned(before, tokenizer="bpe:300", resize_vocab=True)
    plan, begin = planned(config)
    tokenizer, model, saved = plan.data.tokenizer, plan.model, weights(first.checkpoint)
    assert isinstance(tokenizer, tokenizers.BpeTokenizer)
    assert model.vocab_size == tokenizer.vocab_size
    fresh = init_params(model, config.seed)
    for name in (families.embedding(model), families.head(model)):
        for i in range(model.vocab_size):
            text = tokenizer.decode([i])
            old = 256 if i == tokenizer.bos else text[0] if len(text) == 1 else None
            expected = fresh[name][i] if old is None else saved[name][old]
            assert np.array_equal(begin[name][i], expected), (name, i)
    assert f"from 320 to {model.vocab_size} rows: 257 are kept" in " ".join(plan.notes)
    others = saved.keys() - {families.embedding(model), families.head(model)}
    assert all(np.array_equal(begin[name], saved[name]) for name in others)


def model_file(folder, **changes):
    lines = dict(line.split(": ") for line in SMALL_MODEL.split("\n") if line)
    path = folder / f"{'-'.join(changes)}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in {**lines, **changes}.items()))
    return str(path)


def test_a_files_vocabulary_is_the_checkpoints_and_one_that_is_asked_for_is_refused(before):
    model = model_file(before[0], vocab_size="384")
    assert make_plan(tuned(before, model=model)).model.vocab_size == 320
    with pytest.raises(CheckpointError, match="of 320 rows, the .* of 384; add --resize-vocab"):
        make_plan(tuned(before, set="vocab_size=384"))


def test_unusable_checkpoints_and_models_are_refused_with_the_way_out(before):
    folder, first = before
    bare = folder / "bare"
    bare.mkdir()
    for name in ("model.safetensors", "config.json"):
        (bare / name).write_bytes((Path(str(first.checkpoint)) / name).read_bytes())
    refused = [
        ({"model": model_file(folder, hidden_size="64")}, CheckpointError,
         "hidden_size is 32 there and 64 here; leave --model out"),
        ({"model": model_file(folder, num_heads="4")}, CheckpointError,
         "num_heads is 2 there and 4 here"),
        ({"model": mixed_model(folder)}, CheckpointError, "of the family xLSTM Large, "),
        ({"tokenizer": "bpe:300"}, CheckpointError, r"tokenizer bytes .* or add --resize-vocab"),
        ({"init_from": "nothing"}, MlxhogError, r"no run 'nothing'"),
        ({"init_from": str(folder)}, MlxhogError, r"neither a checkpoint nor a run"),
        ({"init_from": str(bare)}, DataError, r"no tokenizer\.json.*--tokenizer"),
    ]  # fmt: skip
    for options, error, message in refused:
        with pytest.raises(error, match=message):
            make_plan(tuned(before, **options))
    # With a named tokenizer, its ids are taken as they are.
    plan = make_plan(tuned(before, init_from=str(bare), tokenizer="bytes"))
    assert plan.model.vocab_size == 320


def test_bigram_statistics_change_embedding_and_head_alone_and_keep_the_embeddings_norm(tmp_path):
    plan, counted = planned(small_config(tmp_path, embedding_init="bigrams"))
    _, drawn = planned(small_config(tmp_path))
    rows = {families.embedding(plan.model), families.head(plan.model)}
    assert {name for name in drawn if not np.array_equal(drawn[name], counted[name])} == rows
    name = families.embedding(plan.model)
    sizes = [np.linalg.norm(values[name]) for values in (drawn, counted)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)
