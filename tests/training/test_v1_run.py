"""A mixed stack trains in both frameworks at once, is saved, goes on and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.checkpoint import checkpoint
from mlxhog.cli import main
from mlxhog.errors import CheckpointError
from mlxhog.models import families
from tests.training.small import mixed_model, parameters, small_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("strategy", ["hogwild", "sync"])
def test_a_mixed_stack_learns_and_goes_on_from_its_checkpoint(
    tmp_path: Path, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {
        "model": mixed_model(tmp_path),
        "workers": "torch:cpu,mlx:cpu",
        "eval_every": "1h",
        "steps": 40,
    }
    first = train(small_config(tmp_path, strategy=strategy, **common))
    second = train(small_config(tmp_path, strategy=strategy, resume=first.run, **common))
    assert (first.status, second.status) == ("done", "done")
    assert first.val_bits_per_byte is not None
    assert second.val_bits_per_byte is not None
    assert second.val_bits_per_byte < first.val_bits_per_byte < 7.0  # a uniform guess has 8.3

    found = checkpoint.load(Path(str(second.checkpoint)))
    cfg = families.read(found.config)
    assert (cfg.model_type, cfg.bos_token_id) == ("xlstm_v1", 256)
    assert parameters(second).keys() == families.param_spec(cfg).keys()

    words = ["generate", str(second.run), "--prompt", "lock ", "--temperature", "0", "--json"]
    answers = []
    for backend in ("torch:cpu", "mlx:cpu"):
        assert main([*words, "--max-new-tokens", "12", "--backend", backend]) == 0
        answers.append(json.loads(capsys.readouterr().out)["text"])
    assert answers[0] == answers[1]


def test_a_checkpoint_of_another_family_is_not_resumed(tmp_path: Path) -> None:
    large = train(small_config(tmp_path, steps=2))
    with pytest.raises(CheckpointError, match="model_type is 'xlstm' there and 'xlstm_v1' here"):
        train(small_config(tmp_path, steps=2, model=mixed_model(tmp_path), resume=large.run))
