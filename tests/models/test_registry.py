"""An architecture is found by its name or by a path, printed with every field, and changed."""

import dataclasses
import json

import pytest

from mlxhog.base import plain_yaml
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.registry import architectures, fields, load_architecture, to_yaml

SIZES = {"5m": 5e6, "10m": 10e6, "30m": 30e6, "60m": 60e6}


def test_a_yaml_a_config_and_a_checkpoint_directory_are_read(tmp_path):
    cfg = load_architecture("tiny")
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict()))
    (tmp_path / "mine.yaml").write_text(
        "vocab_size: 320\nembedding_dim: 128\nnum_blocks: 4\nnum_heads: 4\neps: 1e-6\n"
        "bos_token_id: 256\n"
    )
    assert load_architecture(tmp_path / "config.json") == cfg
    assert load_architecture(tmp_path) == cfg
    assert load_architecture(str(tmp_path / "mine.yaml")) == cfg


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.yaml", "hidden_sizes: 3\n", "a.yaml: .*'hidden_sizes'; did you mean 'hidden_size'"),
        ("config.json", '{"vocab_size": -1}', "config.json: "),
        ("a.yaml", "- 1\n", "holds a list, not fields"),
        ("a.yaml", "a: [1\n", "cannot be parsed"),
        ("config.json", "{", "cannot be parsed"),
        ("config.json", "\udcff", "cannot read the architecture"),
    ],
)
def test_a_file_that_is_not_an_architecture_is_refused(tmp_path, file, text, message):
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        load_architecture(tmp_path / file)


def test_an_unknown_name_is_answered_with_its_neighbour():
    with pytest.raises(ConfigError, match="no architecture 'tinny'.*did you mean 'tiny'"):
        load_architecture("tinny")
    with pytest.raises(ConfigError, match="known are .*tiny"):
        load_architecture("zzz")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["xlstm", "xlstm_v1"])
def test_a_size_is_the_number_of_parameters_within_a_tenth(size, family):
    cfg = load_architecture(size if family == "xlstm" else f"{size}-v1")
    assert cfg.model_type == family
    cfg = families.for_tokens(cfg, bos=ByteTokenizer.bos, vocab_size=ByteTokenizer.vocab_size)
    assert families.param_count(cfg) == pytest.approx(SIZES[size], rel=0.1)


@pytest.mark.parametrize("name", architectures())
def test_a_model_printed_as_yaml_is_that_model_with_a_comment_for_every_field(name, tmp_path):
    cfg = load_architecture(name)
    text = to_yaml(cfg)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_architecture(tmp_path / "mine.yaml") == cfg
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("- ")]
    assert all("  # " in line for line in lines)
    assert set(plain_yaml.loads(text)) >= {"model_type", "vocab_size", "bos_token_id"}


def test_no_setting_of_a_family_is_left_without_a_description():
    for name in ("tiny", "7to1-tiny", "mad-7to1"):
        cfg = load_architecture(name)
        described = {name.split(".")[0] for name, *_ in fields(cfg)}
        assert described == {one.name for one in dataclasses.fields(cfg)} - {"extra"}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        ("tiny", "hidden_size=256, num_hidden_layers=6", (256, 6)),
        ("7to1-tiny", "hidden_size=256, num_hidden_layers=6", (256, 6)),
        ("7to1-tiny", "embedding_dim=64, mlstm_block.mlstm.num_heads=2", (64, 8)),
        ("mad-7to1", "hidden_size=64", (64, 16)),
        ("tiny", None, (128, 4)),
    ],
)
def test_fields_are_changed_by_either_familys_names(name, changes, sizes):
    cfg = load_architecture(name, changes)
    assert (cfg.hidden_size, cfg.num_hidden_layers) == sizes


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny", "hiden_size=3", "no field 'hiden_size'; did you mean 'hidden_size'?"),
        (
            "7to1-tiny",
            "qkv_proj_blocksize=8",
            "did you mean 'mlstm_block.mlstm.qkv_proj_blocksize'",
        ),
        ("7to1-tiny", "slstm_block.feedforward.act_fn=gulu", "wanted one of gelu"),
        ("tiny", "hidden_size", "'hidden_size' is not NAME=VALUE"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(name, changes, message):
    with pytest.raises(ConfigError) as caught:
        load_architecture(name, changes)
    assert message in str(caught.value)
    assert f"model {name} with --set" in str(caught.value)


def test_ids_of_a_config_that_a_smaller_vocabulary_lacks_are_dropped():
    large = load_architecture("160m")
    assert large.to_dict()["eos_token_id"] == 2
    small = families.for_tokens(large, bos=0, vocab_size=2).to_dict()
    assert (small["eos_token_id"], small["pad_token_id"], small["bos_token_id"]) == (None, 1, 0)
