"""The plan of a run: what it decides, refuses and warns of, and the output of `--dry-run`."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from mlxhog import TrainConfig, train
from mlxhog.base import capabilities as verdicts
from mlxhog.base.capabilities import CapabilityRecord
from mlxhog.checkpoint import new_run
from mlxhog.cli import main
from mlxhog.config.budget import Budget
from mlxhog.data import tokenizers
from mlxhog.errors import ConfigError, DataError
from mlxhog.models.registry import load_architecture
from mlxhog.optim import SGD
from mlxhog.training.plan import preview, sizes, strategy_rule
from mlxhog.training.plan import values as job
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.initial_weights import BigramWeights
from tests.pairs import each_of
from tests.training.small import SMALL_MODEL, small_config
from tests.words import changed

TWO = {"workers": "mlx:cpu*2"}
ROOT = Path(__file__).resolve().parents[3]
TIED = f"{SMALL_MODEL}tie_word_embeddings: true"


def config_of(tmp_path, *, model=SMALL_MODEL, **options):
    """A small run of another model, which follows a folder if that is `new`."""
    config = small_config(tmp_path)
    Path(config.model).write_text(model)
    if options.get("follow") == "new":
        (tmp_path / "new").mkdir(exist_ok=True)
        options |= {"follow": str(tmp_path / "new"), "steps": None}
    return replace(config, **options)


@each_of(
    ("options", "words"),
    [
        ({"ngram_lr": 0.05}, "ngram_lr is 0.05, and model .* has no n-gram"),
        ({"model": TIED, "sampled_softmax": 40}, "tied to the embedding; untie"),
        ({"sampled_softmax": 320}, "vocab_size 320; draw fewer"),
        ({"model": TIED, "embedding_init": "bigrams"}, "tied to the embedding; untie"),
        ({"strategy": "hogwild(blocks=disjoint)", "workers": "mlx:cpu*3"}, "at most 2 workers"),
        ({"follow": "/nowhere", "steps": None}, "no folder .*nowhere"),
        *(({"follow": "new", "strategy": one}, "follow: is for lock-free workers")
          for one in ("sync", "hogwild(async_after=0.5)", "hogwild(blocks=disjoint)")),
        ({"follow": "new", "epochs": 2}, "epochs: a followed folder"),
        ({"epochs": 2}, "epochs: is 2, and steps 20"),
        ({"init_from": "a", "resume": "b"}, "init_from: resume b has its own weights"),
        ({"init_from": "a", "embedding_init": "random"}, "random, but init_from a has embeddings"),
        ({"patience": 1, "determinism": "rounds", "eval_every": 5, "strategy": "sync"},
         "patience ends each run"),
        ({"determinism": "rounds"}, "hogwild is never the same twice.*serial, round_robin.*sim"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_way_out(options, words, tmp_path):
    with pytest.raises((ConfigError, DataError), match=words):
        make_plan(config_of(tmp_path, **options))
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("prepared_sotu")
@each_of(
    ("model", "options", "counts"),
    [
        ("minute", {}, True),
        ("minute", {"set": "tie_word_embeddings=true"}, False),
        ("minute", {"tokenizer": "bytes"}, False),  # few words
        ("minute", {"tokenizer": "bytes", "embedding_init": "bigrams"}, True),
        ("tiny", {"tokenizer": "sotu"}, True),
        ("tiny", {"tokenizer": "sotu", "embedding_init": "random"}, False),
    ],
)
def test_embedding_and_head_of_a_large_vocabulary_begin_with_bigram_statistics(
    model, options, counts
):
    plan = make_plan(TrainConfig(model=model, steps=1, **options))
    assert isinstance(plan.initial_weights, BigramWeights) == counts
    assert any("bigram statistics" in note for note in plan.notes) == counts


@pytest.mark.usefixtures("prepared_sotu")
@each_of(
    ("model", "options", "drawn"),
    [
        ("minute", {}, 1024),
        ("minute", {"sampled_softmax": 0}, None),
        ("minute", {"sampled_softmax": 512}, 512),
        ("minute", {"tokenizer": "bytes"}, None),  # few words
        ("10m", {"tokenizer": "sotu"}, None),  # most of the work is in the blocks
    ],
)
def test_a_costly_head_has_a_sampled_softmax(model, options, drawn):
    sampled = make_plan(TrainConfig(model=model, steps=1, **options)).sampled
    assert (sampled and sampled.negatives) == drawn


def model_of(vocab_size):
    return SMALL_MODEL.replace("vocab_size: 320", f"vocab_size: {vocab_size}")


def notes(plan, *words):
    return [note for note in plan.notes if any(word in note for word in words)]


@each_of(
    ("own", "options", "size", "said"),
    [
        (320, {}, 320, ""),
        (257, {}, 320, "vocabulary 320, that of tokenizer bytes, in place of 257 of model small"),
        (320, {"set": "vocab_size=640, hidden_size=64"}, 640, ""),
    ],
)
def test_a_vocabulary_becomes_the_tokenizers_unless_it_is_asked_for(
    own, options, size, said, tmp_path
):
    plan = make_plan(config_of(tmp_path, model=model_of(own), **options))
    assert (plan.model.vocab_size, plan.model.bos_token_id) == (size, 256)
    assert [note[: len(said)] for note in notes(plan, "vocabulary")] == [said] * bool(said)


def test_a_learned_tokenizer_brings_as_many_rows_as_it_has_ids_which_a_resume_keeps(tmp_path):
    plan = make_plan(config_of(tmp_path, model=model_of(1000), tokenizer="bpe:4000"))
    assert plan.model.vocab_size == plan.data.tokenizer.vocab_size < 4000
    assert plan.model.bos_token_id == plan.data.tokenizer.bos
    config = small_config(tmp_path, tokenizer="bpe:300", set="hidden_size=64", steps=2)
    plan = make_plan(replace(config, resume=train(config).run))
    assert (plan.model.vocab_size, plan.model.hidden_size) == (320, 64)
    assert not notes(plan, "vocabulary")


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


def test_two_lock_free_workers_of_lion_have_a_smaller_learning_rate_and_the_plan_says_so(tmp_path):
    options = {"lr": 1e-3, "optimizer": "lion", "workers": "2"}
    plan = make_plan(small_config(tmp_path, **options))
    assert plan.schedule(0.0)(0.03, 0) == pytest.approx(1e-3 / math.sqrt(2))
    (note,) = notes(plan, "lr_workers")
    assert "lr 0.000707: 0.707 of 0.001" in note
    for other in ({"strategy": "sync"}, {"workers": "1"}, {"optimizer": "adamw"}):
        assert not notes(make_plan(small_config(tmp_path, **{**options, **other})), "lr_workers")


@each_of(
    ("strategy", "max_workers", "slots"),
    [
        ("hogwild", None, 4), ("hogwild", 2, 2), ("hogwild", 7, 7), ("serial", None, 1),
        *((one, None, 2) for one in ("sync", "round_robin", "async_ps", "avg_runs")),
        ("hogwild(blocks=disjoint)", None, 2), ("sync", 7, 2),
    ],
)  # fmt: skip
def test_only_workers_that_do_not_wait_for_others_have_free_slots(
    strategy, max_workers, slots, tmp_path
):
    workers = "mlx:cpu" if strategy == "serial" else "mlx:cpu*2"
    options = {"workers": workers, "strategy": strategy, "max_workers": max_workers}
    plan = make_plan(small_config(tmp_path, **options))
    assert plan.strategy.slots == plan.layout.max_workers == slots
    assert plan.free_slots == slots - len(plan.workers)
    fixed = None if strategy == "hogwild" else f"strategy {strategy} divides its work"
    assert fixed is None or fixed in plan.strategy.fixed
    has_none = max_workers is not None and plan.strategy.fixed is not None
    said = [f"max_workers {max_workers} has no effect: {plan.strategy.fixed}"] * has_none
    assert notes(plan, "max_workers") == said


WORDS = (
    "train --dry-run --model small.yaml --data text --seq-len 32 --batch-size 2 --workers mlx:cpu "
    "--threads 1 --strategy hogwild --set hidden_size=64 --tokens 10000"
).split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and a text, on a machine that was never measured."""
    small_config(tmp_path)
    (tmp_path / "text" / "12.jsonl").write_text('{"content": "one more"}\n')
    (tmp_path / "text" / "pic.jpg").write_bytes(b"\0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verdicts, "load", lambda: CapabilityRecord(Path("none"), "never measured"))
    return tmp_path


def said(capsys, *words):
    assert main(changed(WORDS, *words)) == 0
    return capsys.readouterr().out


def test_it_names_changed_options_files_and_memory(here, capsys):
    known = json.loads(said(capsys, "--json"))
    assert known["changed"]["set"] == "hidden_size=64"
    assert {"model", "data", "tokens", "seq_len"} <= known["changed"].keys()
    assert not {"clip", "time", "optimizer", "lr"} & known["changed"].keys()
    assert "lr" in known["decided"]
    assert known["config"]["clip"] == 0.5
    data = known["data"]
    assert len(data["files"]) == 13
    assert [Path(one["path"]).name for one in data["skipped"]] == ["pic.jpg"]
    assert (data["documents"], data["val_documents"]) == (12, 1)
    assert known["epochs"] == pytest.approx(10_000 / known["epoch_tokens"])
    assert known["ngram_baseline_bytes"] > 12 * data["tokens"]
    assert known["ngram_baseline_seconds"] > 0
    parts = ("arena_bytes", "worker_bytes", "ngram_baseline_bytes")
    assert known["memory_bytes"] == sum(known[name] for name in parts)
    assert known["checkpoint_bytes"] > 4 * known["parameters"]
    assert known["checkpoints_kept_bytes"] == 4 * known["checkpoint_bytes"]  # with the best
    alone = json.loads(said(capsys, "--json", "--no-keep-best"))
    assert alone["checkpoints_kept_bytes"] == 3 * known["checkpoint_bytes"]
    assert (known["tokens_per_s"], known["seconds"]) == (None, None)
    lines = " ".join(said(capsys).split())
    for text in ("set hidden_size=64", "files: 13", "and 3 more", "pic.jpg not text",
                 "tokens per s from unknown", "max tokens per s from not known"):  # fmt: skip
        assert text in lines  # only ten files are named
    assert not (here / "runs").exists()
    (here / "text" / "novel.md").write_text("".join(f"ishmael {k}\n" for k in range(3600)))
    data = json.loads(said(capsys, "--json"))["data"]
    by_file = {Path(one["path"]).name: one["val_bytes"] for one in data["files"]}
    assert 0.02 * 45_000 < by_file["novel.md"] < 0.2 * 45_000
    assert sum(by_file.values()) == data["val_bytes"]
    assert data["val_split"].startswith("hash ")


def test_the_time_is_estimated_from_a_run_like_it_and_else_from_doctor(here, monkeypatch):
    config = small_config(here, tokens=10_000, steps=None)
    plan, record = make_plan(config), {"tokens_per_s": {"mlx:cpu": 1000.0}}
    assert preview.tokens_per_s(plan) is None
    monkeypatch.setattr(verdicts, "load", lambda: CapabilityRecord(Path("none"), None, record))
    rough = preview.facts(plan, config)
    assert rough["tokens_per_s"] == pytest.approx(1000 * 939_680 / plan.parameters)
    assert "rough guess" in rough["tokens_per_s_from"]
    likes = (0, "mlx:cpu", 500.0), (1, "mlx:cpu", 1.0), (0, "torch:cpu", 2.0)
    for more, backend, rate in likes:
        earlier = new_run.create(Path(config.runs_dir), f"r{rate:g}")
        result = {"tokens_per_s": rate, "workers": [{"backend": backend}]}
        parameters = plan.parameters + more
        earlier.write_status({"status": "done", "parameters": parameters, "result": result})
    like = preview.facts(plan, config)
    assert (like["tokens_per_s"], like["seconds"]) == (500.0, 20.0)
    assert like["tokens_per_s_from"].startswith("run ")


def test_epochs_count_the_batches_of_synchronous_steps(here):
    config = small_config(here, workers="mlx:cpu*3", async_after=0.25, steps=None, epochs=6)
    plan = make_plan(config)
    tickets = plan.batches().n_tickets
    assert [one.budget.steps for one in (plan, plan.other)] == [2 * tickets, 6 * tickets]
    assert preview.facts(plan, config)["epochs"] == pytest.approx(6.0, rel=0.01)
    many = make_plan(replace(config, epochs=None, steps=4 * tickets))  # a quarter takes 3 batches
    of_epochs = small_config(here, steps=None, epochs=6)
    for one in (many, make_plan(of_epochs)):
        (warning,) = [note for note in one.notes if "times in this budget" in note]
        assert "is read 6" in warning


def test_the_tokens_of_an_epoch_are_those_that_a_run_reads_of_cut_and_of_short_examples(here):
    sizes = [(4, 3), (60, 5), (6, 70), (9, 2)] * 5  # characters of prompt and completion
    pairs = ({"prompt": f"{k:0{a}}", "completion": f"{k:0{b}}"} for k, (a, b) in enumerate(sizes))
    (here / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    data = {"data": str(here / "pairs.jsonl"), "tokenizer": "bytes", "steps": None}
    for plan in map(make_plan, (small_config(here, epochs=2, **data), small_config(here))):
        batches = plan.batches()
        read = [batches.at(0, ticket).n_tokens for ticket in range(batches.n_tickets)]
        assert sum(read) == plan.epoch_tokens
        assert sum(read) / len(read) == pytest.approx(plan.mean_tokens_per_step)


@each_of("size", [8, 300, 900])
def test_a_budget_in_tokens_ends_with_the_batch_that_reaches_it(tmp_path, size):
    options = {"batch_size": size, "steps": None, "tokens": 200_000}
    plan = make_plan(small_config(tmp_path, **options))
    batches, strategy = plan.batches(), plan.strategy
    n = batches.n_tickets
    sizes = [batches.at(0, ticket).n_tokens for ticket in range(n)]
    assert sizes[-1] < sizes[0]
    for done in (0, 1, n - 1, 3 * n + 1):
        steps = plan.budget.step_limit(partial(strategy.steps_of, done=done))
        read = np.cumsum([sizes[(done + k) % n] for k in range(steps)])
        assert read[-1] >= 200_000 > read[-2]
    many = make_plan(small_config(tmp_path, batch_size=size, steps=10 * n))
    assert preview.epochs(many) == pytest.approx(10.0)


def test_the_synchronous_part_of_a_budget_in_tokens_is_reached_where_batches_are_short(tmp_path):
    options = {"batch_size": 900, "steps": None, "tokens": 200_000, "async_after": 0.5}
    plan = make_plan(small_config(tmp_path, workers="mlx:cpu*2", **options))
    assert plan.n_tickets == 2  # which are one synchronous step
    steps = strategy_rule.sync_steps_before(plan, 0)
    assert steps * plan.epoch_tokens >= 100_000 > (steps - 1) * plan.epoch_tokens


def test_tokens_of_examples_are_steps_of_the_mean_batch(tmp_path):
    lines = (json.dumps({"prompt": f"{k:05}", "completion": "a" * 9}) for k in range(48))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    data = {"data": str(tmp_path / "pairs.jsonl"), "tokenizer": "bytes", "batch_size": 32}
    plan = make_plan(small_config(tmp_path, **data, steps=None, tokens=10_000))
    assert (plan.n_tickets, plan.budget.tokens) == (2, None)
    assert plan.budget.steps == math.ceil(10_000 / (plan.epoch_tokens / 2))


def test_a_budget_is_counted_in_epochs():
    for budget, rate, read in (
        (Budget(steps=10), None, 6.4),
        (Budget(steps=10, tokens=200), None, 2.0),
        (Budget(seconds=10), None, None),
        (Budget(seconds=10), 50.0, 5.0),
    ):
        result = job.epochs_read(budget, epoch_tokens=100, tokens_per_step=64, tokens_per_s=rate)
        assert result == read


@pytest.mark.parametrize(
    ("ratio", "epochs", "words"),
    [
        (98, 0.3, "(98.0 per token, about 0.3 epochs expected): the model will overfit"),
        (10, None, "(10.0 per token): the model will overfit from about epoch 2.5 on"),
        (4, 6, "from about epoch 4 on"),
        (4, None, None),
        (4, 3, None),
        (2, 6, "from about epoch 5 on"),
        (1, 60, None),
    ],
)
def test_a_plan_says_that_a_model_is_too_large_for_its_text(ratio, epochs, words):
    plan = Mock(trained_parameters=ratio * 900_000)
    plan.data.train.n_tokens, plan.config.follow = 900_000, None
    line = sizes.overfitting(plan, epochs)
    assert line is None if words is None else words in line and "smaller preset" in line


def test_a_plan_proposes_decay_for_repeated_text_of_large_models_alone(here):
    config = small_config(here)
    plan = make_plan(config)
    n_tokens = plan.data.train.n_tokens

    def proposed(n_trained, epochs, **changes):
        one = replace(plan, trained_parameters=n_trained, config=plan.config.having(**changes))
        return sizes.decay(one, epochs)

    assert "--weight-decay 1 may help" in proposed(4 * n_tokens, 6.0)
    assert proposed(2 * n_tokens, 6.0) is proposed(4 * n_tokens, 2.0) is None
    assert proposed(4 * n_tokens, 6.0, optimizer=SGD(weight_decay=2.0)) is None
    facts = preview.facts(
        replace(plan, parameters=10 * n_tokens, trained_parameters=10 * n_tokens), config
    )
    run = Path(train(replace(config, model="tiny", steps=1)).run)
    assert "will overfit" in (run / "events.jsonl").read_text()
    assert facts["parameters_per_token"] == pytest.approx(10.0)
    assert any("will overfit" in note for note in facts["notes"])
    pair = json.dumps({"prompt": "two and two", "completion": " is four, as it was before"})
    (here / "pairs.jsonl").write_text(f"{pair}\n" * 40)
    examples = make_plan(small_config(here, data=str(here / "pairs.jsonl")))
    many = replace(examples, trained_parameters=10 * examples.data.train.n_tokens)
    assert sizes.decay(many, 6.0) is None
    assert sizes.preset(many, 6.0) == "not measured for examples"


def test_a_plan_names_the_preset_that_was_measured_best_and_else_says_that_none_was(
    here, monkeypatch
):
    plan = make_plan(small_config(here))
    assert sizes.preset(plan, 1.0).startswith("not measured for ")
    monkeypatch.setattr(sizes, "TOKENS_PER_MINUTE", {"minute": plan.epoch_tokens})
    megabytes = plan.data.train.header["bytes"] / 1e6
    table = [
        (megabytes, 2, "minute", "bytes", 2.0),
        (megabytes, 2, "minute", "bpe:512", 1.8),
        (megabytes * 10, 2, "5m", "bytes", 1.0),
    ]
    monkeypatch.setattr(sizes, "ROWS", [sizes.Row(*row) for row in table])
    mine = replace(plan, config=plan.config.having(model="minute", tokenizer="bytes"))
    line = sizes.preset(mine, 2.2)
    assert line.startswith("--model minute, --tokenizer bpe:512: bits per byte on English text")
    assert "minute with bpe:512 1.800, minute with bytes 2.000" in line
    assert "5m" not in line
    best = replace(plan, config=plan.config.having(model="minute", tokenizer="bpe:512"))
    assert sizes.preset(best, 2.2).startswith("keep this one")
    assert sizes.preset(mine, 20.0).startswith("not measured for ")
    assert sizes.preset(mine, None).startswith("not measured for ")
    tuned = replace(mine, config=mine.config.having(init_from="other"))
    assert sizes.preset(tuned, 2.2) == "not measured for a model that has weights already"


def test_the_table_of_presets_is_what_was_measured():
    known = json.loads((ROOT / "benchmarks/results/presets_by_text.json").read_text())
    measured = {(*row["cell"], round(row["best"], 3)) for row in known["sizes"]}
    assert {tuple(row) for row in sizes.ROWS} == measured


def test_the_tokenizer_of_a_text_is_near_the_best_that_was_measured_in_a_minute():
    known = json.loads((ROOT / "benchmarks/results/presets_by_text.json").read_text())
    measured = {}
    for row in known["vocabularies"]:
        megabytes, minutes, _, tokenizer = row["cell"]
        if (minutes, row["seed"]) == (1, 1) and tokenizer != "bpe:16384":  # too large for the width
            measured.setdefault(megabytes, {})[tokenizer] = row["best"]
    assert len(measured) == 11
    for megabytes, bits in measured.items():
        how = {"width": 128, "sha256": "", "rule": "predefined"}
        chosen, _ = tokenizers.choose(n_bytes=round(megabytes * 1e6), **how)
        assert bits[chosen] < min(bits.values()) + sizes.NOISE
