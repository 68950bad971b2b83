"""The plan of a run: what it decides, what it says of that, and what it refuses with a way out."""

import json
import math
from pathlib import Path

import pytest

from mlxhog import TrainConfig, train
from mlxhog.data import tokenizers
from mlxhog.errors import CheckpointError, ConfigError, DataError
from mlxhog.models.registry import load_architecture
from mlxhog.optim import GROUPS, AdamW, Muon
from mlxhog.training.plan import make_plan
from tests.pairs import each_of
from tests.training.small import SMALL_MODEL, small_config

TWO = {"workers": "mlx:cpu*2"}
TIED = f"{SMALL_MODEL}tie_word_embeddings: true"
FEW_LAYERS = "model_type: mad\nvocab_size: 320\nhidden_size: 32\nlayers: [slstm-v1]\n"
"""An architecture without a hidden matrix, both of whose sides are at least half its width."""


def config_of(tmp_path, *, model=SMALL_MODEL, **options):
    """A small run of another model, which follows a folder if that is `new`."""
    config = small_config(tmp_path)
    Path(config.model).write_text(model)
    if options.get("follow") == "new":
        (tmp_path / "new").mkdir(exist_ok=True)
        options |= {"follow": str(tmp_path / "new"), "steps": None}
    return small_config_with(config, options)


def small_config_with(config, options):
    return TrainConfig(**{**vars(config), **options})


@each_of(
    ("options", "words"),
    [
        ({"ngram_lr": 0.05}, "ngram_lr is 0.05, and model .* has no tables"),
        ({"model": TIED, "sampled_head": 40}, "tied to the embedding; untie"),
        ({"sampled_head": 320}, "vocab_size 320; draw fewer"),
        ({"strategy": "hogwild(blocks=disjoint)", "workers": "mlx:cpu*3"}, "at most 2 workers"),
        ({"seq_len": 1_000_000}, "seq"),
        ({"set": "vocab_size=100"}, "set vocab_size to at least 257"),
        ({"compute_dtype": "bfloat16", "kernels": "native"}, "with bfloat16 weights; use auto"),
        ({"follow": "/nowhere", "steps": None}, "no folder .*nowhere"),
        *(({"follow": "new", "strategy": one}, "follow: is for lock-free workers")
          for one in ("sync", "hogwild(async_after=0.5)", "hogwild(blocks=disjoint)")),
        ({"follow": "new", "epochs": 2}, "epochs: a followed folder"),
        ({"epochs": 2}, "epochs: is 2, and steps 20"),
        ({"init_from": "a", "resume": "b"}, "init_from: resume b has its own weights"),
        ({"resize_vocab": True}, "resize_vocab: needs init_from; set that"),
        ({"patience": 2}, "patience: needs eval_every; set that"),
        ({"stop_at_loss": 2}, "stop_at_loss: needs eval_every; set that"),
        ({"patience": 1, "determinism": "rounds", "eval_every": 5, "strategy": "sync"},
         "patience ends each run"),
        ({"determinism": "rounds"}, "hogwild is never the same twice.*serial, round_robin.*sim"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_way_out(options, words, tmp_path):
    with pytest.raises((ConfigError, DataError), match=words):
        make_plan(config_of(tmp_path, **options))
    assert not (tmp_path / "runs").exists()


def model_of(vocab_size):
    return SMALL_MODEL.replace("vocab_size: 320", f"vocab_size: {vocab_size}")


def notes(plan, *words):
    """The notes of a plan with one of these words."""
    return [note for note in plan.notes if any(word in note for word in words)]


@each_of(
    ("own", "options", "size", "said"),
    [
        (320, {}, 320, ""),
        (257, {}, 320, "vocabulary 320, that of tokenizer bytes, in place of 257 of model small"),
        (50_304, {}, 320, "vocabulary 320, that of tokenizer bytes, in place of 50,304 of model"),
        (320, {"set": "vocab_size=640, hidden_size=64"}, 640, ""),
    ],
)
def test_a_vocabulary_becomes_the_tokenizers_unless_it_is_asked_for(
    own, options, size, said, tmp_path
):
    plan = make_plan(config_of(tmp_path, model=model_of(own), **options))
    assert (plan.model.vocab_size, plan.model.bos_token_id) == (size, 256)
    of_vocabulary = notes(plan, "vocabulary", "learnt")
    assert len(of_vocabulary) == bool(said)
    assert all(said in note for note in of_vocabulary)


def test_a_learnt_tokenizer_brings_as_many_rows_as_it_has_ids_which_a_resume_keeps(tmp_path):
    plan = make_plan(config_of(tmp_path, model=model_of(1000), tokenizer="bpe:4000"))
    assert plan.model.vocab_size == plan.data.tokenizer.vocab_size < 4000
    assert plan.model.bos_token_id == plan.data.tokenizer.bos
    short, fitted = sorted(notes(plan, "vocabulary", "learnt"))
    assert short.startswith("tokenizer bpe:4000 learnt ")
    assert f"vocabulary {plan.model.vocab_size:,}" in fitted
    config = small_config(tmp_path, tokenizer="bpe:300", set="hidden_size=64", steps=2)
    more = {"resume": train(config).run}
    plan = make_plan(small_config_with(config, more))
    assert (plan.model.vocab_size, plan.model.hidden_size) == (320, 64)
    assert not notes(plan, "vocabulary", "learnt")
    for changed, words in (
        ("hidden_size=32", r"hidden_size.*64.*32"),
        ("hidden_size=64, vocab_size=640", r"vocab_size.*320.*640"),
    ):
        with pytest.raises(CheckpointError, match=words):
            make_plan(small_config_with(config, {**more, "set": changed}))


def test_a_checkpoints_vocabulary_is_kept_and_refused_where_it_is_too_small(tmp_path):
    def stored(vocab_size):
        (tmp_path / "checkpoint.yaml").write_text(model_of(vocab_size))
        folder = tmp_path / f"checkpoint-{vocab_size}"
        folder.mkdir()
        fields = load_architecture(tmp_path / "checkpoint.yaml").to_dict()
        (folder / "config.json").write_text(json.dumps(fields))
        return str(folder)

    plan = make_plan(small_config(tmp_path, model=stored(512)))
    assert plan.model.vocab_size == 512
    (note,) = notes(plan, "vocabulary")
    assert "keeps its vocabulary of 512; tokenizer bytes needs 320 of it" in note
    small = stored(256)
    with pytest.raises(ConfigError, match=r"has vocab_size 256, .*--set vocab_size=320\)"):
        make_plan(small_config(tmp_path, model=small))
    grown = make_plan(small_config(tmp_path, model=small, set="vocab_size=320"))
    assert grown.model.vocab_size == 320


def test_two_lock_free_workers_of_lion_take_a_smaller_step_and_the_plan_says_so(tmp_path):
    def plan_of(**options):
        plan = make_plan(small_config(tmp_path, lr=1e-3, **options))
        return plan.schedule(0.0)(0.03, 0), notes(plan, "lr_workers")

    step, (note,) = plan_of(optimizer="lion", workers="2")
    assert step == pytest.approx(1e-3 / math.sqrt(2))
    assert "lr 0.000707: 0.707 of 0.001" in note
    for options in (
        {"optimizer": "lion", "workers": "2", "strategy": "sync"},
        {"optimizer": "lion", "workers": "1"},
        {"optimizer": "adamw", "workers": "2"},
    ):
        assert plan_of(**options) == (pytest.approx(1e-3), [])


def test_a_model_without_hidden_matrices_trains_with_adamw_and_the_plan_says_so(tmp_path):
    options = {"model": FEW_LAYERS, "strategy": "serial", "steps": 2, "lr": None}
    muon = config_of(tmp_path, optimizer="muon", **options)
    planned = make_plan(muon)
    (note,) = notes(planned, "muon")
    assert "no hidden matrix (both sides at least 16, half its width)" in note
    assert "adamw moves every parameter" in note
    by_adamw = AdamW(beta1=0.9, **dict.fromkeys(GROUPS.values(), 1.0))
    assert (planned.config.optimizer, planned.config.top_lr) == (by_adamw, 1e-3)
    assert planned.stored.optimizer == by_adamw
    resumed = make_plan(small_config_with(muon, {"resume": train(muon).run}))
    assert resumed.config.optimizer == by_adamw  # the stored name of its optimizer is accepted


@pytest.mark.slow
def test_the_default_is_the_preset_of_a_minute_over_the_shipped_tokenizer(tmp_path):
    plan = make_plan(TrainConfig(out=str(tmp_path), workers="mlx:cpu"))
    stored, chosen = plan.stored, plan.stored.optimizer
    assert (stored.model, stored.tokenizer) == ("minute", "sotu")
    assert plan.data.tokenizer.sha256 == tokenizers.SHIPPED_SHA256
    assert (plan.model.vocab_size, plan.model.bos_token_id, plan.parameters) == (4096, 0, 1_477_520)
    assert (stored.lr, type(chosen)) == (0.0065, Muon)
    assert (chosen.embedding_lr, chosen.head_lr, chosen.scalar_lr) == (12, 2.4, 1.5)
    assert not notes(plan, "vocabulary")


@each_of(
    ("strategy", "elastic"),
    [
        ("hogwild", True),
        *((one, False) for one in ("serial", "sync", "round_robin", "async_ps", "avg_runs")),
        ("hogwild(blocks=disjoint)", False),
    ],
)
def test_only_workers_that_do_not_wait_for_others_are_elastic(strategy, elastic, tmp_path):
    workers = "mlx:cpu" if strategy == "serial" else "mlx:cpu*2"
    plan = make_plan(small_config(tmp_path, workers=workers, strategy=strategy))
    assert plan.free_slots == (2 if elastic else 0)
    assert (plan.strategy.fixed is None) == elastic
    assert elastic or f"strategy {strategy} divides its work" in plan.strategy.fixed


def test_free_slots_are_as_many_as_are_asked_for(tmp_path):
    for max_workers, slots in ((1, 1), (7, 7), (None, 3)):
        plan = make_plan(small_config(tmp_path, strategy="hogwild", max_workers=max_workers))
        assert (plan.strategy.slots, plan.layout.max_workers) == (slots, slots)
