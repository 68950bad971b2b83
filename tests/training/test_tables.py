"""Runs with tables of n-grams: what they learn, lose, save and refuse."""

from pathlib import Path

import numpy as np
import pytest
import transformers

from mlxhog import load, train
from mlxhog.checkpoint import checkpoint
from mlxhog.cli import main
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.optim.tables import MEANS
from mlxhog.training.plan import make_plan
from tests.training.small import identical, parameters, small_config

SET = "ngram_orders=2-4, ngram_dim=8, ngram_rows=1024"


def with_tables(tmp_path, **options):
    return small_config(tmp_path, **{"set": SET, **options})


def touched(result):
    """Names of the tables in which rows have moved."""
    return {name for name, value in parameters(result).items() if "table" in name and value.any()}


@pytest.mark.slow
def test_tables_learn_what_the_last_ids_say(tmp_path):
    options = {"steps": 60, "eval_every": "1h"}
    plain = train(small_config(tmp_path, **options))
    result = train(with_tables(tmp_path, **options))
    assert touched(result) == {"ngrams.table_2", "ngrams.table_3", "ngrams.table_4"}
    assert checkpoint.load(Path(str(result.checkpoint))).optimizer[MEANS].all()
    assert result.val_bits_per_byte is not None
    assert plain.val_bits_per_byte is not None
    assert result.val_bits_per_byte < plain.val_bits_per_byte - 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"async_after": 0.5, "workers": "mlx:cpu*2"},
        {"strategy": "sync", "backup_workers": 1, "workers": "mlx:cpu*2"},
        {"strategy": "locked", "workers": "mlx:cpu*2"},
        {"optimizer": "muon", "workers": "mlx:cpu*2", "write": "cas"},
        {"grad_accumulation": 2, "sampled_head": 40},
        {"optimizer": "sgd", "lr": 0.1},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_strategies_and_optimizers_carry_tables(tmp_path, options):
    result = train(with_tables(tmp_path, **options))
    assert (result.status, len(touched(result))) == ("done", 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "local_sgd"}, "strategy local_sgd as this run uses it reads or writes whole"),
        ({"strategy": "diloco"}, "take --strategy hogwild, locked, serial or sync"),
        ({"blocks": "disjoint", "predict": "none"}, "reads or writes whole parameters"),
        ({"determinism": "record"}, "without determinism=record"),
        ({"set": None, "ngram_lr": 0.05}, "ngram_lr is 0.05, and model .* has no tables"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_carry_tables_says_so_and_names_the_way_out(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        make_plan(with_tables(tmp_path, **{"workers": "mlx:cpu*2", "steps": 200, **options}))


@pytest.mark.slow
def test_a_checkpoint_without_tables_gets_none_and_one_with_tables_keeps_them(tmp_path):
    plain = train(small_config(tmp_path, steps=2))
    with pytest.raises(CheckpointError, match="ngram_orders is None there and"):
        train(with_tables(tmp_path, steps=2, resume=plain.run))
    begun = {"model": "auto", "tokenizer": "auto", "init_from": str(plain.checkpoint)}
    with pytest.raises(CheckpointError, match="ngram_orders is None there and"):
        train(with_tables(tmp_path, **begun))
    result = train(with_tables(tmp_path, steps=5))
    with pytest.raises(CheckpointError, match="ngram_orders is \\[2, 3, 4\\] there and None here"):
        train(small_config(tmp_path, steps=2, resume=result.run))
    begun["init_from"] = str(result.checkpoint)
    tuned = train(small_config(tmp_path, **{**begun, "steps": 1, "lr": 1e-9, "ngram_lr": 1e-9}))
    before, after = parameters(result), parameters(tuned)
    assert touched(tuned) == touched(result)
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)


@pytest.mark.slow
def test_text_is_generated_and_scored_with_the_tables(tmp_path):
    result = train(with_tables(tmp_path, steps=40))
    with load(str(result.checkpoint), backend="torch:cpu") as model:
        scored = model.score("lock free adds never wait")
        assert len(model.generate("lock", max_new_tokens=8, temperature=0.0)) > 0
    with load(str(result.checkpoint), backend="mlx:cpu") as other:
        assert other.score("lock free adds never wait") == pytest.approx(scored, abs=1e-3)


@pytest.mark.slow
def test_conversion_to_other_programs_is_refused_and_to_ours_keeps_them(tmp_path, capsys):
    result = train(with_tables(tmp_path, steps=5))
    source = str(result.checkpoint)
    with pytest.raises(ValueError, match="model_type"):
        transformers.AutoConfig.from_pretrained(source)
    for format in ("hf", "xlstm"):
        assert main(["convert", source, str(tmp_path / format), "--to", format]) == 2
        assert "tables of n-grams" in capsys.readouterr().err
    assert main(["convert", source, str(tmp_path / "ours"), "--to", "mlxhog"]) == 0
    assert identical(parameters(result), {**checkpoint.formats.open(tmp_path / "ours").tensors})
