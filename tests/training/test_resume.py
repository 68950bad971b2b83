"""A run goes on: with another strategy, other workers, its own budget or a new one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mlxhog import checkpoint, run, train
from mlxhog.arena import Arena
from mlxhog.cli import main
from mlxhog.data.ledger import Ledger
from mlxhog.errors import CheckpointError
from mlxhog.metrics import Result
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.opening import default_name
from mlxhog.plan import make_plan
from mlxhog.resume import restore
from mlxhog.strategies.sync import is_over
from tests.models.twins import TWINS
from tests.training.small import small_config
from tests.training.test_deaths import ROOT, run_directory, wait_until


def state(result: Result) -> dict[str, Any]:
    """What the last checkpoint says about where the run stands."""
    return checkpoint.load(Path(str(result.checkpoint))).state


@pytest.mark.parametrize(
    ("before", "after"), [("serial", "sync"), ("sync", "hogwild"), ("hogwild", "serial")]
)
def test_a_run_goes_on_with_another_strategy(tmp_path: Path, before: str, after: str) -> None:
    workers = {"serial": "torch:cpu", "sync": "torch:cpu*2", "hogwild": "torch:cpu*2"}
    common = {"steps": 30, "eval_every": "1h"}
    first = train(small_config(tmp_path, strategy=before, workers=workers[before], **common))
    config = small_config(
        tmp_path, strategy=after, workers=workers[after], resume=first.run, **common
    )
    second = train(config)
    assert (second.status, second.steps) == ("done", 30)
    assert state(second)["used"]["steps"] == 60
    assert second.val_bits_per_byte is not None
    assert first.val_bits_per_byte is not None
    assert second.val_bits_per_byte < first.val_bits_per_byte


def test_workers_that_join_take_the_average_of_the_moments_and_the_run_says_so(
    tmp_path: Path,
) -> None:
    first = train(small_config(tmp_path, steps=20, workers="torch:cpu*2"))
    messages: list[str] = []
    config = small_config(tmp_path, steps=20, workers="torch:cpu*3", resume=first.run)
    second = train(config, observer=lambda p: messages.append(p.message or ""))
    assert second.steps == 20
    assert "2 workers' moments were averaged for 3 workers" in messages


def test_a_run_that_went_asynchronous_goes_on_with_every_workers_own_moments(
    tmp_path: Path,
) -> None:
    options = {"workers": "torch:cpu*2", "async_after": 0.5, "steps": 40}
    first = train(small_config(tmp_path, **options))
    found = checkpoint.load(Path(str(first.checkpoint)))
    assert found.state["opt_steps"].keys() == {"1", "2"}
    planned = make_plan(small_config(tmp_path, resume=first.run, **options))
    with Arena.create(planned.layout) as arena:
        restore(planned, arena, Ledger(arena))
        assert is_over(arena.segment("sync.words"), 2)
        for worker in (1, 2):
            moments = arena.segment(f"m.{worker}")
            for name, slot in arena.layout.slots.items():
                saved = found.optimizer[f"m.{worker}/{name}"].ravel()
                assert np.array_equal(moments[slot.offset : slot.offset + slot.size], saved)
    assert train(small_config(tmp_path, resume=first.run, **options)).status == "done"


def test_a_resumed_synchronous_run_has_no_moments_to_average(tmp_path: Path) -> None:
    options = {"workers": "torch:cpu*2", "strategy": "sync", "steps": 5}
    first = train(small_config(tmp_path, **options))
    messages: list[str] = []
    train(
        small_config(tmp_path, resume=first.run, **options),
        observer=lambda p: messages.append(p.message or ""),
    )
    assert not any("moments" in message for message in messages)


def test_a_run_opens_with_what_it_is_going_to_do(tmp_path: Path) -> None:
    messages: list[str] = []
    result = train(
        small_config(tmp_path, steps=2), observer=lambda p: messages.append(p.message or "")
    )
    assert messages[0].startswith("mlxhog ")
    for part in ("hogwild", "1 worker: torch:cpu (1 thread)", "arena", "small.yaml", result.run):
        assert part in messages[0]
    assert Path(result.run).name.endswith("-text")  # the name of the corpus


def test_a_finished_run_takes_its_budget_again_and_an_interrupted_one_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = train(small_config(tmp_path, steps=10))
    for steps in (20, 30):
        assert main(["train", "--resume", first.run, "--json", "--quiet"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["steps"] == 10
        assert run.Run(Path(first.run)).read_status()["steps"] == steps
    assert main(["runs"]) == 0
    assert " 30 " in capsys.readouterr().out
    assert main(["train", "--resume", first.run, "--steps", "4", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4


def test_a_killed_run_goes_on_from_its_last_checkpoint_with_the_rest_of_its_budget(
    tmp_path: Path,
) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom mlxhog import train\n"
        "from tests.training.small import small_config\n"
        'if __name__ == "__main__":\n'
        "    train(small_config(Path(sys.argv[1]), steps=1_000_000, save_every=50))\n"
    )
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        directory = run_directory(tmp_path)
        wait_until((directory / "checkpoints" / "latest").exists, 60, "a checkpoint")
    finally:
        child.kill()
        child.wait()
    found = checkpoint.load(checkpoint.latest(run.Run(directory)))
    before = found.state["used"]["steps"]
    assert found.state["left"]["steps"] == 1_000_000 - before
    result = train(small_config(tmp_path, steps=6, resume=str(directory)))
    assert result.steps == 6
    assert state(result)["used"]["steps"] == before + 6


def test_transformers_computes_the_logits_of_our_twin_from_a_trained_checkpoint(
    tmp_path: Path,
) -> None:
    result = train(small_config(tmp_path, steps=200, workers="torch:cpu,mlx:cpu"))
    found = checkpoint.load(Path(str(result.checkpoint)))
    tokens = np.frombuffer(b"\0never wait lock free adds", np.uint8).astype(np.int32)[None]
    tokens[0, 0] = 256
    model: Any = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    config = XLSTMLargeConfig.from_dict(found.config)
    params = {name: np.array(value) for name, value in found.params.items()}
    for name, twin in TWINS.items():
        logits, _ = twin.logits(config, params, tokens)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("data", "name"),
    [("sotu", "sotu"), ("notes/", "notes"), ("a/my text.txt", "my-text"), ("notes/*.md", "notes")],
)
def test_a_run_is_named_after_its_corpus(data: str, name: str) -> None:
    assert default_name(data) == name
    assert default_name("/") == "run"


def test_a_run_goes_on_with_its_own_tokenizer_and_text_only(tmp_path: Path) -> None:
    first = train(small_config(tmp_path, steps=2))
    with pytest.raises(CheckpointError, match="was trained with tokenizer bytes .*use the same"):
        train(small_config(tmp_path, steps=2, resume=first.run, tokenizer="bpe:300"))
    other = tmp_path / "other.txt"
    other.write_text("another text altogether. " * 2000)
    with pytest.raises(CheckpointError, match="name the corpus and tokenizer"):
        train(small_config(tmp_path, steps=2, resume=first.run, data=str(other)))
