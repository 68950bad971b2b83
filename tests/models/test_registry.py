"""An architecture is found by its name or by a path, printed with every field, and changed."""

import dataclasses
import json

import pytest

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import ConfigError
from mlxhog.experiments.target import options_of
from mlxhog.models import families
from mlxhog.models.registry import (
    architectures,
    fields,
    is_line,
    is_stored,
    load_architecture,
    load_candidate,
    to_yaml,
)
from tests.pairs import each_of


def test_a_yaml_a_config_and_a_checkpoint_directory_are_read(tmp_path):
    cfg = load_architecture("tiny")
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict()))
    text = "{vocab_size: 320, embedding_dim: 128, num_blocks: 4, num_heads: 4, eps: 1e-6, "
    (tmp_path / "mine.yaml").write_text(text + "bos_token_id: 256}")
    for path in (tmp_path / "config.json", tmp_path, str(tmp_path / "mine.yaml")):
        assert load_architecture(path) == cfg


def test_a_tilde_in_the_path_of_an_architecture_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(load_architecture("tiny").to_dict()))
    assert load_architecture("~") == load_architecture("~/config.json") == load_architecture("tiny")
    assert is_stored("~")
    (tmp_path / "mine").write_text(to_yaml(load_candidate("mlstm swiglu")))
    assert load_candidate("~/mine").layers == load_candidate("mlstm swiglu").layers


def test_a_line_of_layers_is_an_architecture_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "(mh-attention swiglu)*2 " + "mlstm(h2,conv=4) swiglu " * 40  # longer than a file's name
    cfg = load_architecture(line, "hidden_size=64")
    assert (cfg.hidden_size, cfg.layers) == (64, load_candidate(line).layers)
    assert options_of(line) == (line, {"model": (line, line)})
    assert load_architecture("swiglu").layers == load_candidate("swiglu").layers
    with pytest.raises(ConfigError, match="no layer 'mlsm'; did you mean 'mlstm'"):
        load_architecture("mlsm swiglu")
    (tmp_path / "mlstm swiglu").mkdir()
    assert not is_line("mlstm swiglu")  # it names a folder


@each_of(
    ("file", "text", "message"),
    [
        ("a.yaml", "hidden_sizes: 3\n", "a.yaml: .*'hidden_sizes'; did you mean 'hidden_size'"),
        ("config.json", '{"vocab_size": -1}', "config.json: "),
        ("a.yaml", "a: [1\n", "cannot read the architecture .*: line 2: "),
        ("config.json", "\udcff", "cannot read the architecture .*: not UTF-8 text .byte 0.; corr"),
        (
            "a.safetensors",
            "\x40" + "\0" * 7 + '{"a"' + " " * (1 << 21),
            "a safetensors file, not t",
        ),
        ("a.pt", "PK\3\4a", "a zip file, not text; .*config.json .*train --init-from take weights"),
        ("a.bin", "\udc80\2a", "a pickle file, not text"),
        ("a.gguf", "GGUF\3\0", "not text .byte 5 is zero.; correct"),
    ],
)
def test_a_file_that_is_not_an_architecture_is_refused(tmp_path, file, text, message):
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        load_architecture(tmp_path / file)


def test_an_unknown_name_is_answered_with_its_neighbour():
    with pytest.raises(ConfigError, match="no architecture 'tinny'.*did you mean 'tiny'"):
        load_architecture("tinny")


@each_of("name", architectures())
def test_a_model_printed_as_yaml_is_that_model_with_a_comment_for_every_field(name, tmp_path):
    cfg = load_architecture(name)
    text = to_yaml(cfg)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_architecture(tmp_path / "mine.yaml") == cfg
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("- ")]
    assert all("  # " in line for line in lines)
    described = {name.split(".")[0] for name, *_ in fields(cfg)}
    assert described == {one.name for one in dataclasses.fields(cfg)} - {"extra", "adapter"}
    size = name.removesuffix("-v1")
    if size in ("5m", "10m", "30m", "60m"):  # its number of parameters, within a tenth
        bytes_ = {"bos": ByteTokenizer.bos, "vocab_size": ByteTokenizer.vocab_size}
        count = families.param_count(families.for_tokens(cfg, **bytes_))
        assert count == pytest.approx(1e6 * int(size[:-1]), rel=0.1)


@each_of(
    ("name", "changes", "sizes"),
    [
        ("tiny", "hidden_size=256, num_hidden_layers=6", (256, 6)),
        ("7to1-tiny", "embedding_dim=64, mlstm_block.mlstm.num_heads=2", (64, 8)),
        ("mad-7to1", "hidden_size=64", (64, 16)),
        ("tiny", None, (128, 4)),
    ],
)
def test_fields_are_changed_by_either_familys_names(name, changes, sizes):
    cfg = load_architecture(name, changes)
    assert (cfg.hidden_size, cfg.num_hidden_layers) == sizes


@each_of(
    ("name", "changes", "message"),
    [
        ("tiny", "hiden_size=3", "no field 'hiden_size'; did you mean 'hidden_size'?"),
        ("7to1-tiny", "qkv_proj_blocksize=8", "mean 'mlstm_block.mlstm.qkv_proj_blocksize'"),
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
