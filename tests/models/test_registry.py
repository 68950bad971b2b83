"""An architecture is found by its name or by a path."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models.registry import architectures, load_architecture
from mlxhog.models.xlstm_large import param_count


def test_tiny_is_the_model_of_the_benchmarks() -> None:
    cfg = load_architecture("tiny")
    assert (cfg.hidden_size, cfg.num_hidden_layers, cfg.num_heads) == (128, 4, 4)
    assert cfg.vocab_size == 320
    assert param_count(cfg) == 939_680


def test_every_architecture_of_the_package_loads() -> None:
    assert "tiny" in architectures()
    for name in architectures():
        load_architecture(name)


def test_a_yaml_a_config_and_a_checkpoint_directory_are_read(tmp_path: Path) -> None:
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
        ("a.yaml", "num_heads: 4\n", "a.yaml: the architecture lacks vocab_size"),
        ("a.yaml", "vocab_size: many\n", "a.yaml: vocab_size is 'many'"),
        ("config.json", '{"vocab_size": -1}', "config.json: "),
        ("a.yaml", "- 1\n", "holds a list, not fields"),
        ("a.yaml", "a: [1\n", "cannot be parsed"),
        ("config.json", "{", "cannot be parsed"),
        ("config.json", "\udcff", "cannot read the architecture"),
    ],
)
def test_a_file_that_is_not_an_architecture_is_refused(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        load_architecture(tmp_path / file)


def test_an_unknown_name_is_answered_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match="no architecture 'tinny'.*did you mean 'tiny'"):
        load_architecture("tinny")
    with pytest.raises(ConfigError, match="known are .*tiny"):
        load_architecture("zzz")


def test_reading_and_initialising_a_model_imports_no_framework() -> None:
    code = (
        "import sys; from mlxhog.models import families as x, registry; "
        "from mlxhog.models.ops import kernels; "
        "x.init_params(registry.load_architecture('tiny'), 0); "
        "sys.exit(bool({'torch', 'mlx', 'mlx.core'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
