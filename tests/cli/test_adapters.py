"""Commands take an adapter as any model: its base is found, and what is wrong is said in a line."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog import load
from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats import peft
from mlxhog.checkpoint.formats.converting import convert
from mlxhog.cli import main
from mlxhog.models import families
from mlxhog.models.adapters import B, LoRA, is_adapter
from tests.cli.command import refused, said, told
from tests.saved import SMALL, letters, saved_run, write_adapter

SAME = ("--prompt=ab", "--max-new-tokens=24", "--seed=1")


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """A folder with an adapter on `base`, a model of letters, in the current folder."""
    monkeypatch.chdir(tmp_path)
    run = saved_run(tmp_path / "runs", params=letters())
    convert(formats.open(run.model.resolve()), tmp_path / "base", "hf")
    model = replace(SMALL, adapter=LoRA(rank=3))
    params, rng = families.init_params(model, 1), np.random.default_rng(0)
    for name in filter(is_adapter, params):
        params[name] = (rng.standard_normal(params[name].shape) / 6).astype(np.float32)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", model, params, base="base")
    return "adapter"


def test_an_adapter_writes_and_scores_as_the_merged_model(adapter, capsys, tmp_path):
    (tmp_path / "text.txt").write_text("abcd\nabab\n")
    report = told(capsys, "convert", adapter, "whole", "--merge", "--format=mlxhog", "--check")
    assert report["parameters"] == families.param_count(SMALL)
    assert report["logits"]["largest_difference"] < 1e-4
    texts = {name: told(capsys, "generate", name, *SAME)["text"] for name in ("whole", adapter)}
    assert texts["whole"] == texts[adapter] != told(capsys, "generate", "base", *SAME)["text"]
    scores = [
        told(capsys, "eval", name, "--data=text.txt")["bits_per_byte"]
        for name in ("whole", adapter, "base")
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert scores[2] != pytest.approx(scores[1], rel=1e-2)


def test_merging_into_a_base_of_16_bits_says_how_much_of_the_adapter_rounding_takes_away(
    adapter, capsys
):
    convert(formats.open("base"), Path("narrow"), "hf", "bfloat16")
    opened = formats.open("adapter")
    own = {name: opened.tensors[name] for name in families.trainable_spec(opened.config)}
    own = {name: 1e-3 * one if name.endswith(B) else one for name, one in own.items()}
    Path("small").mkdir()
    write_adapter(Path("small"), opened.config, own, base="narrow")
    words = ("convert", "small", "whole", "--merge", "--format=hf")
    code = main([*words, "--check", "--quiet"])
    rounded, differs = capsys.readouterr().err.splitlines()
    share = re.fullmatch(
        r"merging rounds to 16 bits: (\d+) % of the weights that the adapter changes keep the "
        "base's value; --dtype float32 keeps all changes", rounded,
    )  # fmt: skip
    base, whole = (formats.open(name).tensors for name in ("narrow", "whole"))
    same, n = 0, 0
    for name in peft.stems(own):
        a, b = (np.float32(one[f"{name}.weight"]) for one in (base, whole))
        same, n = same + (a == b).sum(), n + a.size
    assert int(share[1]) == pytest.approx(100 * same / n, abs=1)
    assert same > n / 2
    assert (code, "whole computes other logits than" in differs) == (1, True)
    exact = said(capsys, *words, "--overwrite", "--dtype=float32", "--check", "--quiet")
    assert exact.err == ""
    assert formats.open("whole").tensors[f"{name}.weight"].dtype == np.float32


@pytest.mark.parametrize("to", ["peft", "mlx-lm-adapter"])
def test_an_adapter_alone_is_converted_and_checked(adapter, capsys, to):
    report = told(capsys, "convert", adapter, "alone", "--format", to, "--check")
    trained = families.trainable_spec(formats.open("alone").config)
    assert report["parameters"] == sum(spec.size for spec in trained.values())
    assert (report["tensors"], report["logits"]["largest_difference"]) == (len(trained), 0)


@pytest.mark.slow
def test_parity_compares_the_gradients_and_steps_of_an_adapter_beside_its_base(adapter, capsys):
    report = told(capsys, "parity", adapter, "--steps=1")
    assert report["ok"] is True
    trained = families.trainable_spec(formats.open(adapter).config)
    compared = {row["what"] for row in report["rows"]}
    assert {what.partition("/")[2] for what in compared if what.startswith("grad/")} == {*trained}
    assert {f"step/adamw/{name}" for name in trained} <= compared


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("convert", "adapter", "x", "--format=hf"), "is a whole checkpoint; add --merge"),
        (("convert", "base", "x", "--format=peft"), "--format peft is for an adapter"),
        (("convert", "base", "x", "--format=hf", "--merge"), "--merge is for an adapter"),
        (("serve", "base", "--adapter=adapter"), "write NAME=PATH"),
        (("serve", "base", "--adapter=a=nowhere"), "nowhere"),
        (("serve", "base", "--adapter=a=base"), "is a whole model, not an adapter"),
        (("serve", "adapter", "--adapter=a=adapter"), "is an adapter itself; merge it before"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(adapter, capsys, words, says):
    refused(capsys, says, *words)


def test_an_adapter_without_its_base_says_where_to_name_it(adapter, capsys, tmp_path):
    (tmp_path / "base").rename(tmp_path / "moved")
    refused(capsys, "base model base is not there; write its path", "generate", adapter, *SAME)
    fields = json.loads((tmp_path / adapter / peft.CONFIG).read_text())
    fields["base_model_name_or_path"] = str(tmp_path / "moved")
    (tmp_path / adapter / peft.CONFIG).write_text(json.dumps(fields))
    assert told(capsys, "generate", adapter, *SAME)["text"]


WITHOUT_XLSTM = """
import sys
sys.modules["xlstm"] = None  # the package is not installed
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "xlstm" else find(name, *rest)
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.models.xlstm import modeling_xlstm
assert not modeling_xlstm.external_xlstm
base = AutoModelForCausalLM.from_pretrained("base")
model = PeftModel.from_pretrained(base, "adapter").eval()
with torch.no_grad():
    print(model(torch.arange(16)[None], use_cache=False).logits[0, -1].tolist())
"""


@pytest.mark.slow
def test_peft_computes_the_same_on_transformers_without_the_xlstm_package(adapter, capsys):
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_XLSTM], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    with load(adapter, backend="torch:cpu") as model:
        expected = model.logits(np.arange(16))[-1]
    found = json.loads(found.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, expected, atol=1e-4)
