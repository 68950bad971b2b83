"""Runs with an adapter: the base stays as it is, and all that holds of a run holds of these."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import evaluate, load
from mlxhog.backends import frozen
from mlxhog.base import mapped
from mlxhog.base.quantities import format_count
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.checkpoint.base_model import BaseModel
from mlxhog.checkpoint.formats.converting import convert
from mlxhog.cli import main
from mlxhog.config.config import TrainConfig
from mlxhog.errors import CheckpointError, ConfigError, MlxhogError
from mlxhog.experiments import CompareConfig
from mlxhog.experiments.pairs import Comparison, Side
from mlxhog.models import families
from mlxhog.models.adapters import LoRA
from mlxhog.models.ops.frozen import names_of
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.training.plan import adapter
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.supervisor.training import train
from tests.tolerances import LOGITS_F32, assert_close
from tests.training.asking import trained, until
from tests.training.small import (
    checkpoint_of,
    identical,
    mixed_model,
    parameters,
    small_config,
    tickets,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder, and the checkpoint of a small run in it."""
    folder = tmp_path_factory.mktemp("base")
    return folder, train(small_config(folder, steps=10, name="first")).checkpoint


def adapted(base, **options):
    """Options of a run that trains an adapter beside that checkpoint."""
    folder, path = base
    defaults = {"init_from": path, "model": "auto", "adapter": "lora(rank=4)", "steps": 6}
    return small_config(folder, **{**defaults, **options})


def test_only_the_adapter_is_trained_and_saved(base):
    result = train(adapted(base))
    saved, opened = checkpoint_of(result), formats.open(Path(str(result.checkpoint)))
    assert saved.params.keys() == families.trainable_spec(saved.model).keys()
    assert all(".lora_" in name for name in saved.params)
    before = formats.open(base[1]).tensors
    assert all(np.array_equal(opened.tensors[name], before[name]) for name in before)
    assert all(value.any() for value in saved.params.values())  # B began at zero
    files = {path.name for path in saved.path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files
    assert "model.safetensors" not in files


def test_a_comparison_scores_an_adapter_beside_its_base_as_the_run_held_it(base, tmp_path):
    config = adapted(base, base_weights="4bit")
    result, side = train(config), Side("one", config)
    comparison = Comparison(side, side, CompareConfig(steps=6), tmp_path)
    here = SimpleNamespace(call=lambda limit_s, score, *given: score(None, *given))
    bits = comparison._scored(here, "a", result).bits_per_byte
    assert bits == pytest.approx(evaluate(result.run).bits_per_byte, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["mlx:cpu", "torch:cpu"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_adapter_has_the_bits_of_one_that_was_not_interrupted(base, workers, optimizer):
    how = {"workers": workers, "optimizer": optimizer, "schedule": "constant", "strategy": "serial"}
    whole = train(adapted(base, **how, steps=8))
    first = train(adapted(base, **how, steps=5))
    assert main(["train", "--resume", first.run, "--steps", "3", "--quiet"]) == 0
    resumed = checkpoint.load(checkpoint.latest(run_of(first)))
    assert identical(parameters(whole), {k: np.array(v) for k, v in resumed.params.items()})


def run_of(result):
    return checkpoint.Run(Path(result.run))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "sync"}, {"strategy": "hogwild", "optimizer": "muon"},
        {"strategy": "diloco", "average_every": 4, "replicas": 2}, {"strategy": "ssp"},
        {"strategy": "avg_runs"}, {"overlap": True}, {"read": "live", "workers": "torch:cpu*2",
        "predict": "none"}, {"write": "racy"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)  # fmt: skip
def test_every_strategy_trains_an_adapter(base, options):
    result = train(adapted(base, **{"workers": "mlx:cpu,torch:cpu", "steps": 12, **options}))
    assert result.status == "done"
    assert all(np.isfinite(value).all() for value in checkpoint_of(result).params.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["xlstm_v1", "adapter"])
def test_a_model_with_other_cells_and_an_adapter_itself_begin_a_run(base, model, tmp_path):
    if model == "xlstm_v1":
        first = train(small_config(tmp_path, model=mixed_model(tmp_path), steps=4))
    else:
        first = train(adapted(base, lora_targets="q,v"))
    options = {"adapter": "lora(rank=2)"} if model == "xlstm_v1" else {"adapter": None}
    result = train(adapted((base[0], first.checkpoint), **options, steps=4))
    assert result.status == "done"
    if model == "adapter":
        assert checkpoint_of(result).base.digest == checkpoint_of(first).base.digest
        assert parameters(result).keys() == parameters(first).keys()


@pytest.mark.slow
def test_workers_that_die_lose_no_step_of_an_adapter(base, trained_with_kills, tmp_path):
    config = adapted(base)
    how = {"init_from": base[1], "model": "auto", "adapter": config.adapter, "data": config.data}
    result = trained_with_kills(("step", 2), steps=40, workers="mlx:cpu,torch:cpu", **how)
    assert (result.status, result.steps) == ("done", 40)
    assert tickets(checkpoint_of(result).state) >= 40
    assert result.restarts >= 2


@pytest.mark.slow
def test_a_recorded_adapter_run_replays_to_its_hashes(base, capsys):
    result = train(adapted(base, determinism="record", workers="mlx:cpu,torch:cpu", steps=20))
    assert main(["replay", result.run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"]


@pytest.mark.slow
def test_a_reader_follows_the_adapter_while_it_trains_and_the_base_stays(base):
    ends = {"steps": None, "time": 3600.0, "workers": "mlx:cpu,torch:cpu"}
    config = adapted(base, **ends, live="on", live_every=1, strategy="hogwild")
    before = formats.open(base[1]).tensors

    def read(directory):
        with load(directory, backend="torch:cpu") as model:
            first = model.logits([1, 2, 3])
            params, version = model.follower.backend.params, model.follower.loaded().version
            until(directory, lambda workers: model.follower.has_newer())
            model.follower._load()
            assert model.follower.loaded().version > version
            assert not np.array_equal(first, model.logits([1, 2, 3]))
            for name, value in before.items():
                (frozen,) = getattr(params[name], "parts", (params[name],))
                assert np.array_equal(value, np.asarray(frozen))

    trained(config, read)


def test_a_note_counts_parameters_without_tables_of_ngrams(base):
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 1}
    model = XLSTMLargeConfig(**sizes, ngram_orders=(2, 3))
    adapted = replace(model, adapter=LoRA(rank=2, modules_to_save=("ngrams", "lm_head")))
    spec = families.trainable_spec(adapted)
    trained = sum(one.size for name, one in spec.items() if "table" not in name)
    n_frozen = families.param_count(adapted) - trained
    assert n_frozen > 0
    said = adapter.note(adapted, BaseModel(Path("b"), "b", "0"), 0)
    counts = f"{format_count(trained)} parameters are trained, beside {format_count(n_frozen)} "
    assert f": {counts}frozen" in said


@pytest.mark.parametrize(
    ("width", "dtype", "weights"),
    [
        (64, np.float16, "keep"),
        (64, mapped.BFLOAT16, "keep"),
        (64, np.float32, "bfloat16"),
        (64, np.float32, "4bit"),
        (96, np.float32, "4bit"),  # groups of 32
        (96, np.float32, "8bit"),
        (80, np.float32, "4bit"),  # no whole groups
    ],
)
def test_the_memory_of_a_base_is_that_of_the_tensors_by_which_it_is_held(
    width, dtype, weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {"vocab_size": 320, "num_hidden_layers": 1, "num_heads": 2}
    model = XLSTMLargeConfig(**sizes, hidden_size=width, adapter=LoRA(rank=2))
    spec = families.param_spec(model)
    tensors = {name: np.zeros(spec[name].shape, dtype) for name in families.frozen_names(model)}
    held, expected = frozen.shared(model, tensors, weights, digest="a1"), 0
    for name in tensors:
        parts = [held[part].nbytes for part in names_of(name) if part in held]
        expected += sum(parts) if frozen.is_reduced(model, name) else 4 * spec[name].size
    assert adapter.base_bytes(model, weights, tensors) == expected


@pytest.mark.slow
def test_a_run_keeps_the_base_that_the_run_of_the_base_removes(base, tmp_path):
    first = train(small_config(tmp_path, steps=4, name="first"))
    result = train(adapted((tmp_path, first.checkpoint)))
    shutil.rmtree(first.run)
    again = train(adapted((tmp_path, None), model="auto", resume=result.run, steps=2))
    assert again.status == "done"


def test_a_base_is_kept_again_where_the_folder_of_a_run_was_removed(base):
    run = run_of(train(adapted(base)))
    kept = replace(checkpoint.load(checkpoint.latest(run)).base, title=base[1], path=Path("base"))
    shutil.rmtree(run.directory / "base")
    kept.kept_again(run)
    assert kept.inside(run.directory).tensors().keys() == formats.open(Path(base[1])).tensors.keys()


@pytest.fixture(scope="module")
def resumed(base):
    """A run with document resets that its base lacks, and what resumed it with dropout."""
    first = train(adapted(base, set="reset_at_document_boundaries=true", steps=2))
    options = {"init_from": None, "resume": first.run, "adapter": "lora(rank=4, dropout=0.1)"}
    return first, train(adapted(base, **options, steps=2))


def test_an_adapter_has_the_resets_of_its_run_where_its_base_has_none(resumed, base, tmp_path):
    for result in resumed:
        opened = formats.open(Path(result.checkpoint))
        assert opened.config.reset_at_document_boundaries
        assert not opened.base.config.reset_at_document_boundaries
        with load(result.checkpoint, backend="torch:cpu") as model:
            bos = model.tokenizer.bos
            after, alone = model.logits([65, 66, bos, 67]), model.logits([bos, 67])
            assert_close(after[2:], alone, LOGITS_F32)
    with pytest.raises(ConfigError, match="reset_at_document_boundaries True, .* with --merge"):
        convert(opened, tmp_path / "alone", "peft")
    convert(opened, tmp_path / "whole", "hf", merge=True)
    assert formats.open(tmp_path / "whole").config.reset_at_document_boundaries


def test_a_resumed_run_calls_its_base_as_before(resumed, base):
    titles = [checkpoint_of(result).state["base"]["title"] for result in resumed]
    assert titles == [base[1]] * 2
    run, saved = run_of(resumed[1]), checkpoint_of(resumed[1])
    shutil.rmtree(run.directory / "base")
    replace(saved.base, title=titles[1], path=Path("base")).kept_again(run)
    assert formats.open(saved.path).base.digest() == saved.base.digest


def test_a_resume_may_change_the_dropout_of_an_adapter_but_not_its_factor(resumed, base):
    assert [checkpoint_of(one).model.adapter.dropout for one in resumed] == [0, 0.1]
    asked = "adapter of rank 4 and alpha 8 there and an adapter of rank 4 and alpha 2 here"
    with pytest.raises(CheckpointError, match=asked):
        train(adapted(base, init_from=None, resume=resumed[0].run, adapter="lora(rank=4, alpha=2)"))
    options = {"init_from": resumed[1].checkpoint, "adapter": "lora(rank=4, dropout=0.2)"}
    plan = make_plan(adapted(base, **options, set="reset_at_document_boundaries=true"))
    assert plan.config.adapter.dropout == plan.model.adapter.dropout == 0.2


@pytest.mark.slow
def test_another_base_is_refused_on_a_resume(base, tmp_path):
    result = train(adapted(base))
    kept = Path(result.run) / "base" / "model.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.unlink()  # a hard link: the first run keeps its own
    kept.write_bytes(content)
    with pytest.raises(CheckpointError, match="is an adapter for another base"):
        train(TrainConfig(resume=result.run, steps=2, adapter="lora(rank=4)",
                          runs_dir=str(base[0] / "runs")))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"init_from": None, "model": "tiny"}, "trains beside the weights of a model; name it"),
        ({"resize_vocab": True}, "the embedding is frozen"),
        ({"adapter": "lora(rank=64)"}, "rank 64 is above the smaller side"),
        ({"lora_targets": "qq"}, "targets has 'qq', which no layer of this model is called"),
        ({"adapter": None, "base_weights": "4bit"}, "base_weights: needs adapter"),
        ({"adapter": "dora"}, "no adapter 'dora'"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_before_a_run_begins(base, options, says):
    runs = sorted((base[0] / "runs").iterdir())
    with pytest.raises(MlxhogError, match=says):
        train(adapted(base, **options))
    assert sorted((base[0] / "runs").iterdir()) == runs


def test_an_adapter_continues_as_it_is_or_is_merged_first(base):
    result = train(adapted(base))
    options = {"adapter": None, "base_weights": "4bit"}  # that of the checkpoint continues
    plan = make_plan(adapted((base[0], result.checkpoint), **options))
    assert (plan.model.adapter.rank, plan.base.weights) == (4, "4bit")
    with pytest.raises(ConfigError, match="is an adapter of rank 4 and alpha 8 already; .*--merge"):
        train(adapted((base[0], result.checkpoint), adapter="lora(rank=8)"))
    words = "an adapter of rank 4 and alpha 8 there and no adapter"
    with pytest.raises(CheckpointError, match=words):
        train(adapted(base, init_from=None, resume=result.run, adapter=None))


def test_an_adapter_reads_back_from_its_text_and_its_file():
    lora = LoRA(rank=4, targets=("q", "ffn.*"), modules_to_save=("lm_head",))
    assert str(lora) == "lora(rank=4, targets=q,ffn.*, modules_to_save=lm_head)"
    for written in (str(lora), lora.to_dict()):
        config = TrainConfig(init_from="latest", adapter=written)
        assert config.adapter == lora
    flags = TrainConfig(init_from="latest", lora_rank=4, lora_targets="q,ffn.*",
                        lora_modules_to_save="lm_head")  # fmt: skip
    assert flags.adapter == lora
