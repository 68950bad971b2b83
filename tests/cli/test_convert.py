"""`mlxhog convert`: other packages load its files, bit for bit; nothing is half written or lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from xlstm import xLSTMLMModel
from xlstm.xlstm_large.from_pretrained import load_from_pretrained

from mlxhog.base import durable, mapped
from mlxhog.checkpoint import formats
from mlxhog.cli import main
from mlxhog.models import checkpoint_names as translation
from mlxhog.models import families
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from tests.checkpoint.formats import peers
from tests.checkpoint.formats.peers import assert_same, state_dict
from tests.cli import command
from tests.pairs import each_of, in_pairs
from tests.saved import saved_run
from tests.tolerances import LOGITS_F32, assert_close


def convert(*words):
    return main(["convert", *map(str, words)])


def refused(capsys, code, message, *words):
    command.refused(capsys, message, "convert", *words, code=code)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def logits(model, **how):
    with torch.no_grad():
        out = model(peers.TOKENS, **how)
    return getattr(out, "logits", out[0] if isinstance(out, tuple) else out).numpy()


def loaded_large(folder):
    return load_from_pretrained(
        folder,
        chunkwise_kernel_name=peers.NATIVE["chunkwise_kernel"],
        sequence_kernel_name=peers.NATIVE["sequence_kernel"],
        step_kernel_name="native",
    ).eval()


@pytest.fixture
def hf(tmp_path):
    return peers.save_transformers(tmp_path / "hf")


@pytest.mark.parametrize("use_bias", [False, True])
def test_transformers_loads_what_came_from_the_package_and_computes_the_same(tmp_path, use_bias):
    model = peers.large(use_bias=use_bias, embedding_dim=128)
    if use_bias:  # transformers' final norm has none
        torch.nn.init.zeros_(model.backbone.out_norm.bias)
    source = peers.save_package(model, tmp_path / "a")
    assert convert(source, tmp_path / "b", "--format", "hf") == 0
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "b", output_loading_info=True
    )
    assert not any(info.values()), info
    assert_close(logits(theirs.eval(), use_cache=False), logits(model), LOGITS_F32)


def test_the_package_loads_what_came_from_transformers_and_computes_the_same(tmp_path, hf):
    assert convert(hf, tmp_path / "b", "--format", "xlstm") == 0
    theirs = loaded_large(tmp_path / "b")
    model = transformers.AutoModelForCausalLM.from_pretrained(hf).eval()
    assert_close(logits(theirs), logits(model, use_cache=False), LOGITS_F32)


def test_a_tied_head_is_written_out_since_transformers_does_not_tie_it(tmp_path, hf):
    fields = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    weights = load_file(hf / "model.safetensors")
    weights["lm_head.weight"] = weights["backbone.embeddings.weight"].clone()
    expected = {k: v for k, v in weights.items() if k != "lm_head.weight"}
    save_file(expected, hf / "model.safetensors", {"format": "pt"})
    assert convert(hf, tmp_path / "b", "--format", "hf") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert_same(dict(theirs.state_dict()), weights)
    assert convert(tmp_path / "b", tmp_path / "c", "--format", "xlstm") == 0
    assert torch.equal(
        loaded_large(tmp_path / "c").lm_head.weight, weights["backbone.embeddings.weight"]
    )
    assert convert(tmp_path / "c", tmp_path / "d", "--format", "mlxhog") == 0
    assert_same(state_dict(tmp_path / "d"), weights)
    assert formats.open(tmp_path / "d").config.tie_word_embeddings


@pytest.mark.parametrize(
    ("between", "dtype"),
    [
        (["xlstm", "mlxhog"], torch.bfloat16),
        (["xlstm", "mlxhog"], torch.float32),
        (["hf"], torch.float16),
    ],
)
def test_transformers_weights_and_unknown_fields_survive_every_way(tmp_path, hf, between, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=dtype)
    model.save_pretrained(hf)
    source = hf
    for k, to in enumerate([*between, "hf"]):
        assert convert(source, tmp_path / f"{k}", "--format", to) == 0
        source = tmp_path / f"{k}"
    assert_same(state_dict(source), state_dict(hf))
    before, after = (json.loads((f / "config.json").read_text()) for f in (hf, source))
    kernels = {"mode", "return_last_states", "chunkwise_kernel", "sequence_kernel", "step_kernel"}
    ignored = kernels | {"use_cache", "transformers_version"}
    assert {k: v for k, v in before.items() if k not in ignored} == {
        k: v for k, v in after.items() if k in before and k not in ignored
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (source / name).read_bytes() == (hf / name).read_bytes()


@in_pairs(slstm_at=[[], [1], [0, 1]], tie_weights=[False, True])
def test_a_v1_stack_survives_the_way_to_ours_and_back(tmp_path, slstm_at, tie_weights):
    model = peers.v1(slstm_at, tie_weights=tie_weights)
    source = peers.save_package(model, tmp_path / "a")
    assert convert(source, tmp_path / "b", "--format", "mlxhog") == 0
    assert convert(tmp_path / "b", tmp_path / "c", "--format", "xlstm") == 0
    assert_same(state_dict(tmp_path / "c"), dict(model.state_dict()))
    theirs = xLSTMLMModel(model.config).eval()
    theirs.load_state_dict(state_dict(tmp_path / "c"), strict=True)
    np.testing.assert_array_equal(logits(theirs), logits(model))
    if slstm_at:
        fields = yaml.safe_load((tmp_path / "c" / "config.yaml").read_text())
        assert fields["slstm_block"]["slstm"]["backend"] == "vanilla"


def test_a_final_norm_with_bias_goes_to_ours_and_back_and_with_our_class_to_transformers(tmp_path):
    model = peers.large(use_bias=True)
    source = peers.save_package(model, tmp_path / "a")
    assert convert(source, tmp_path / "b", "--format", "mlxhog") == 0
    assert convert(tmp_path / "b", tmp_path / "c", "--format", "xlstm") == 0
    assert_same(state_dict(tmp_path / "c"), dict(model.state_dict()))
    assert convert(tmp_path / "b", tmp_path / "d", "--format", "hf", "--check") == 0
    assert (tmp_path / "d" / "modeling_torch.py").exists()


@each_of("dtype", ["float32", "bfloat16", "float16"])
def test_a_type_is_converted_as_torch_rounds_and_a_line_says_so(tmp_path, dtype, capsys):
    hf = peers.save_transformers(tmp_path / "hf")
    capsys.readouterr()
    assert convert(hf, tmp_path / "b", "--format", "hf", "--dtype", dtype) == 0
    out, err = capsys.readouterr()
    assert out.startswith("xLSTM Large, ")
    assert f": {tmp_path / 'b'}  " in out
    assert (err, out.count("\n")) == ("", 1)
    rounded = {name: t.to(getattr(torch, dtype)) for name, t in state_dict(hf).items()}
    assert_same(state_dict(tmp_path / "b"), rounded)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == dtype


def test_a_check_compares_logits_and_other_ones_end_with_code_1(tmp_path, hf, monkeypatch, capsys):
    for dtype in ("keep", "bfloat16"):
        words = [hf, tmp_path / dtype, "--format", "xlstm", "--dtype", dtype, "--check"]
        assert convert(*words, "--json") == 0
        record = json.loads(capsys.readouterr().out)
        assert [record[name] for name in ("from", "format", "family")] == ["hf", "xlstm", "xlstm"]
        assert list(record["files"]) == ["model.safetensors"]
        assert record["parameters"] == sum(t.numel() for t in state_dict(hf).values())
        compared = record["logits"]
        assert compared["tokens"] == 64
        assert (compared["largest_difference"] == 0) == (dtype == "keep")
        assert compared["largest_difference"] < 0.1 < compared["largest"]
    real = translation.to_xlstm

    def swapped(arrays, *words, **options):
        converted = real(arrays, *words, **options)
        q, k = (f"backbone.blocks.1.mlstm_layer.{name}.weight" for name in "qk")
        return converted | {q: converted[k], k: converted[q]}

    monkeypatch.setattr(translation, "to_xlstm", swapped)
    assert convert(hf, tmp_path / "b", "--format", "xlstm", "--check") == 1
    assert "computes other logits than" in capsys.readouterr().err


def test_a_check_has_no_more_tokens_than_the_model_has_positions(tmp_path, capsys):
    model = {"dim": 16, "layers": "mlstm(h2) swiglu(inner=16)", "max_length": 9}
    run = saved_run(tmp_path / "runs", model=families.read(model | {"position": "learned"}))
    words = (run.model.resolve(), tmp_path / "b", "--format", "hf", "--check")
    logits = command.told(capsys, "convert", *words)["logits"]
    assert (logits["tokens"], logits["largest_difference"]) == (9, 0)


def test_only_a_checkpoint_is_replaced_and_only_on_request_also_by_itself(tmp_path, hf, capsys):
    target, before = Path(shutil.copytree(hf, tmp_path / "b")), state_dict(hf)
    words = (hf, target, "--format", "xlstm")
    refused(capsys, 2, "or replace it with --overwrite", *words)
    (target / "README.md").touch()
    refused(capsys, 2, "b has README.md, which --overwrite would delete", *words, "--overwrite")
    (target / "README.md").unlink()
    (target / ".DS_Store").touch()  # of macOS' Finder
    (target / "merges.txt").touch()  # of a tokenizer
    (target / "__pycache__").mkdir()  # of mlx-lm
    (target / "__pycache__" / "xlstm.cpython-311.pyc").touch()
    (target / "__pycache__" / "mine.txt").touch()
    refused(capsys, 2, "b has __pycache__, which --overwrite would", *words, "--overwrite")
    (target / "__pycache__" / "mine.txt").unlink()
    assert convert(*words, "--overwrite") == 0
    assert formats.open(target).format == "xlstm"
    assert (
        convert(target, target, "--format", "hf", "--overwrite") == 0
    )  # by itself in another form
    assert_same(state_dict(target), before)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    home = (hf, tmp_path / "home", "--format", "hf", "--overwrite")
    refused(capsys, 2, "is not a checkpoint's directory", *home)
    big = tmp_path / "big"
    big.mkdir()
    (tmp_path / "a").symlink_to(big)
    for more in ([], ["--overwrite"]):
        refused(capsys, 2, "a is a link", hf, tmp_path / "a", "--format", "hf", *more)
    assert (tmp_path / "a").readlink() == big
    big.rmdir()
    (tmp_path / "a").unlink()
    (tmp_path / "a").touch()
    refused(capsys, 2, "a is not a directory", hf, tmp_path / "a" / "b" / "c", "--format", "hf")
    assert entries(tmp_path) == ["a", "b", "hf", "home"]


def test_the_current_folder_is_never_replaced(tmp_path, hf, monkeypatch, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, target in ((empty, "."), (Path(shutil.copytree(hf, tmp_path / "b")), "../b")):
        monkeypatch.chdir(folder)
        words = (hf, target, "--format", "xlstm", "--overwrite")
        refused(capsys, 2, f"{target} is the current folder", *words)
        assert Path.cwd() == folder
    monkeypatch.chdir(empty)
    for target in (tmp_path, "/"):
        refused(capsys, 2, "or holds it, and would be replaced", hf, target, "--format", "hf")


def test_what_cannot_be_converted_is_refused_before_any_write(tmp_path, hf, monkeypatch, capsys):
    refused(capsys, 2, "--format is missing", hf, tmp_path / "b")
    gone = (hf, tmp_path / "b", "--format", "hf", "--config", "gone.json")
    refused(capsys, 2, "cannot read the config gone.json", *gone)
    monkeypatch.setattr(durable, "SPACE_MARGIN", 1e12)
    refused(capsys, 3, "checkpoint b needs", hf, tmp_path / "b", "--format", "hf")
    assert entries(tmp_path) == ["hf"]


DAMAGED = "has numbers that are not finite; use another checkpoint of the same model"


@each_of(
    ("value", "dtype", "reason"),
    [
        (float("nan"), "float16", DAMAGED),
        (float("inf"), "keep", DAMAGED),
        (1e6, "float16", "has numbers too large for float16; use --dtype float32 or keep"),
    ],
)
def test_numbers_that_are_not_finite_in_the_type_are_named(tmp_path, value, dtype, reason, capsys):
    model = peers.large()
    with torch.no_grad():
        model.backbone.blocks[1].ffn.proj_up.weight[3, 4] = value
    source = peers.save_package(model, tmp_path / "a")
    name = f"backbone.blocks.1.ffn.proj_up.weight of {source} {reason}"
    refused(capsys, 2, name, source, tmp_path / "b", "--format", "hf", "--dtype", dtype)
    assert entries(tmp_path) == ["a"]


def test_a_full_disk_or_a_kill_loses_nothing_and_leaves_no_part(tmp_path, hf, monkeypatch, capsys):
    target, real = Path(shutil.copytree(hf, tmp_path / "b")), mapped.chunks
    for words in ([tmp_path / "c"], [target, "--overwrite"]):
        calls = iter(range(20))

        def full(source, calls=calls):
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield from real(source)

        monkeypatch.setattr(mapped, "chunks", full)
        refused(capsys, 3, "disk became full while writing", hf, *words, "--format", "mlxhog")
        assert entries(tmp_path) == ["b", "hf"]
    assert formats.open(target).format == "hf"
    monkeypatch.undo()
    for pid in (999_999_999, os.getpid()):  # containers have the same few
        target.rename(tmp_path / f"b.{pid}.old")  # as a process that was killed leaves it
        (tmp_path / f"b.{pid}.part").mkdir()
        (tmp_path / f"b.{pid}.part" / "model.safetensors").touch()
        refused(capsys, 2, "or replace it with --overwrite", hf, target, "--format", "hf")
        assert entries(tmp_path) == ["b", "hf"]
        assert formats.open(target).format == "hf"


MEMORY = """
import resource, sys
from pathlib import Path
from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats.converting import convert

def highest():
    status = Path("/proc/self/status")  # ru_maxrss begins with that of the parent on Linux
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])

source = formats.open(sys.argv[1])
before = highest()
convert(source, Path(sys.argv[2]), sys.argv[3], sys.argv[4] or None)
print(highest() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "to", "dtype"), [("safetensors", "hf", ""), ("pt", "xlstm", "bfloat16")]
)
def test_memory_stays_flat_however_large_the_model(tmp_path, stored, to, dtype):
    model = XLSTMLargeConfig(vocab_size=24_000, hidden_size=512, num_hidden_layers=2, num_heads=2)
    shapes = {name: spec.shape for name, spec in families.param_spec(model).items()}
    params = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    n_bytes = sum(tensor.nbytes for tensor in params.values())
    assert n_bytes > 100 << 20
    (tmp_path / "a").mkdir()
    if stored == "pt":
        torch.save(params, tmp_path / "a" / "model.pt")
    else:
        save_file(params, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    (tmp_path / "a" / "config.json").write_text(json.dumps(model.to_dict()))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a"), str(tmp_path / "b"), to, dtype]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(process.stdout) < 0.25 * n_bytes
