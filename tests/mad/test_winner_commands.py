"""`mad vote` and `mad scale`: from a study to a model for `mlxhog train`."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.cli import main
from mlxhog.errors import ConfigError
from mlxhog.models.families import init_params
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.models.registry import load_architecture
from mlxhog.nn.mlx import LanguageModel as MLXModel
from mlxhog.nn.torch import LanguageModel as TorchModel
from tests.mad.report.sample import CONV, study
from tests.tolerances import LOGITS_F32, assert_close


@pytest.fixture(autouse=True)
def _at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*words):
    return main(["mad", *words])


def layers_of(path):
    return canonical(load_architecture(path).layers)


def test_vote_prints_every_slot_and_who_voted(capsys):
    study(Path("studies"))
    assert run("vote", "first", "--top", "2") == 0
    output = capsys.readouterr().out
    assert "2 of 3 candidates vote, scores 0.900 to 0.600: the best 2" in output
    assert "gated-conv 1, swiglu 1" in output
    assert "place 1 of 3 in the study, score 0.900" in output


def test_vote_as_json_has_slots_voters_and_the_score_where_it_is_known(capsys):
    study(Path("studies"))
    assert run("vote", "first", "--json", "--out", "w.yaml") == 0
    output = json.loads(capsys.readouterr().out)
    assert output["layers"] == CONV
    assert output["slots"][0] == {"slot": 1, "layer": "gated-conv", "votes": {"gated-conv": 1}}
    assert output["voters"] == [{"layers": CONV, "score": pytest.approx(0.9)}]
    assert (output["candidates"], output["score"]) == (3, pytest.approx(0.9))
    assert layers_of(output["file"]) == CONV


def test_candidates_that_lack_runs_do_not_vote(capsys):
    def lacks(record):
        return None if record.candidate == CONV and record.seed == 1 else record

    study(Path("studies"), change=lacks)
    assert run("vote", "first", "--json") == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == 2


def test_a_study_without_a_finished_candidate_says_how_to_go_on(capsys):
    study(Path("studies"), change=lambda record: record if record.seed == 1 else None)
    assert run("vote", "first") == 2
    assert "continue it: mlxhog mad resume first" in capsys.readouterr().err


def test_the_winner_of_a_study_is_scaled_at_the_width_it_was_searched_at(capsys):
    study(Path("studies"), dim=48)
    assert run("scale", "first", "--depth", "6", "--out", "deep.yaml", "--json") == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["depth"], output["dim"], output["layers"]) == (6, 48, " ".join([CONV] * 3))
    assert layers_of("deep.yaml") == output["layers"]


@pytest.mark.parametrize("how", ["stack", "stretch"])
def test_a_file_that_is_scaled_can_be_scaled_again(how):
    line = "mlstm(h2) swiglu(inner=48) slstm(h2) mlp"
    assert run("scale", line, "--depth", "8", "--how", how, "--out", "a.yaml", "--dim", "32") == 0
    assert run("scale", "a.yaml", "--depth", "8", "--out", "b.yaml") == 0
    assert Path("a.yaml").read_bytes() == Path("b.yaml").read_bytes()
    assert sorted(load_architecture("a.yaml").layers, key=str) == sorted(parse(line) * 2, key=str)


@pytest.mark.slow
def test_a_winner_travels_from_the_search_to_transformers_and_to_modules_of_both_frameworks(
    capsys, monkeypatch
):
    transformers = pytest.importorskip("transformers", reason="the extra [peers]")
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(Path("modules").absolute()))
    monkeypatch.setattr(sys, "path", list(sys.path))
    space = "space: {depth: 2, mixers: [mlstm(h2), gated-conv], channels: [swiglu(inner=16)]}"
    Path("space.yaml").write_text(space)
    small = "--tasks M --steps 2 --dim 16 --no-prune --parallel 1 --quiet"
    assert run("search", "--space", "space.yaml", "--study", "s", *small.split()) == 0
    assert run("vote", "s", "--out", "winner.yaml") == 0
    assert run("scale", "winner.yaml", "--depth", "4", "--out", "deep.yaml") == 0
    Path("text.txt").write_text("lock free adds never wait " * 1000)
    train = "train --model deep.yaml --data text.txt --workers mlx:cpu --seq-len 16 --steps 2"
    assert main([*train.split(), "--batch-size", "2", "--eval-tokens", "512", "--quiet"]) == 0
    assert main(["convert", "latest", "exported", "--to", "hf", "--check", "--quiet"]) == 0

    tokens = np.random.default_rng(0).integers(0, 256, (2, 12))
    theirs = transformers.AutoModelForCausalLM.from_pretrained("exported", trust_remote_code=True)
    ours = TorchModel("exported")
    with torch.no_grad():
        answer = theirs(torch.tensor(tokens), labels=torch.tensor(tokens))
        whole, _ = ours(torch.tensor(tokens))
        first, state = ours(torch.tensor(tokens[:, :7]))
        rest, _ = ours(torch.tensor(tokens[:, 7:]), state)
        written = theirs.generate(torch.tensor(tokens[:1]), max_new_tokens=3, do_sample=False)
    expected = whole.numpy()
    assert_close(answer.logits.numpy(), expected, LOGITS_F32)
    assert_close(torch.cat([first, rest], 1).numpy(), expected, LOGITS_F32)
    assert_close(np.array(MLXModel("exported")(mx.array(tokens))[0]), expected, LOGITS_F32)
    assert torch.isfinite(answer.loss)
    assert written.shape == (1, 15)
    capsys.readouterr()


def test_a_module_of_a_model_file_has_the_initial_values_of_training_and_learns():
    Path("m.yaml").write_text("model: {dim: 16, layers: 'mlstm(h2) swiglu(inner=16)'}")
    model = TorchModel("m.yaml", seed=3)
    values = init_params(load_architecture("m.yaml"), 3)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: value.shape for name, value in values.items()
    }
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), values[name])
    logits, _ = model(torch.zeros(1, 8, dtype=torch.long))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ConfigError, match="cannot write text"):
        TorchModel(replace(model.architecture, backbone="autoencoder"))
