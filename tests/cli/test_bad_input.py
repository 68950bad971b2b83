"""Wrong input and missing parts through the real commands: one message, the right exit code."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.base import machine
from mlxhog.checkpoint import creation
from mlxhog.cli import main
from mlxhog.live import opening
from mlxhog.models.registry import load_architecture
from tests.pairs import each_of
from tests.training.small import SMALL_MODEL
from tests.words import changed

SMALL = "--seq-len 32 --batch-size 2 --workers mlx:cpu --threads 1 --steps 2 --quiet".split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small model and texts of every bad kind."""
    monkeypatch.chdir(tmp_path)
    for name, change in {
        "small": ("", ""),
        "uneven": ("num_heads: 2", "num_heads: 5"),
        "typo": ("hidden_size", "hiden_size"),
        "wide": ("hidden_size: 32", "hidden_size: wide"),
        "huge": ("hidden_size: 32", "hidden_size: 262144"),
        "deep": ("num_hidden_layers: 1", "num_hidden_layers: 40000000"),
    }.items():
        Path(f"{name}.yaml").write_text(SMALL_MODEL.replace(*change))
    fields = load_architecture("small.yaml", "vocab_size=200, bos_token_id=0").to_dict()
    Path("narrow.json").write_text(json.dumps(fields))
    Path("table.csv").write_text("id,review\n1,good\n")
    Path("wide.txt").write_text("never wait", encoding="utf-16-le")
    Path("good.txt").write_text("never wait, add without a lock. " * 2000)
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("hi")
    Path("binary.txt").write_bytes(bytes(range(256)) * 100)
    Path("folder").mkdir()
    Path("broken.yaml").write_text("lr: [1\n")
    Path("key.yaml").write_text("wrokers: 2\n")
    Path("type.yaml").write_text("lr: many\n")
    return tmp_path


@each_of(
    ("words", "code", "message"),
    [
        ("--config key.yaml", 2, "key.yaml:1: no option 'wrokers'; did you mean 'workers'?"),
        ("--config type.yaml", 2, "type.yaml:1: lr is 'many'"),
        ("--config broken.yaml", 2, "broken.yaml:2: not YAML"),
        ("--config binary.txt", 2, "binary.txt: not UTF-8"),
        ("--model uneven.yaml", 2, "does not divide into num_heads 5"),
        ("--model typo.yaml", 2, "did you mean 'hidden_size'?"),
        ("--model wide.yaml", 2, "hidden_size is 'wide'"),
        ("--model tinny", 2, "no architecture 'tinny'"),
        ("--set vocab_size=200", 2, "vocab_size 200, tokenizer bytes 257 ids, one of which is BOS"),
        ("--model narrow.json", 2, "set vocab_size to at least 257"),
        ("--set hiden_size=3", 2, "no field 'hiden_size'; did you mean 'hidden_size'?"),
        ("--set hidden_size", 2, "'hidden_size' is not NAME=VALUE"),
        (
            "--set tie_word_embeddings=true --head-lr 2",
            2,
            "head is its embedding (tied)",
        ),
        ("--optimizer sgd --embedding-lr 2", 2, "sgd has no embedding_lr; muon, adamw"),
        (
            "--data table.csv",
            2,
            "its columns are 'id', 'review'; name the key of the text: --text-key review",
        ),
        ("--data wide.txt", 2, "is not text: a zero byte at offset 1; "),
        ("--model huge.yaml", 3, "the parameters of model huge.yaml alone need"),
        ("--model deep.yaml", 2, "num_hidden_layers is 40000000; set it to 4096 at most"),
        ("--memory-limit 0.001", 3, "use fewer --workers, a smaller --batch-size or --model"),
        ("--data empty.txt", 2, "has no text"),
        ("--data short.txt", 2, "too short"),
        ("--data binary.txt", 2, "is not text: a zero byte at offset 0"),
        ("--data folder", 2, "the folder folder holds no files"),
        ("--data ~nosuchuser/x", 2, "the system does not know a user 'nosuchuser'"),
        ("--tokenizer ~nosuchuser/x", 2, "the system does not know a user 'nosuchuser'"),
        ("--resume ~nosuchuser/x", 2, "the system does not know a user 'nosuchuser'"),
        ("--data nowhere.txt", 2, "no file or folder 'nowhere.txt'"),
        ("--seq-len 1000000", 2, "use more text or a smaller seq_len"),
        ("--workers mlx:gpu", 3, "use mlx:cpu here"),
        ("--workers torch:cpu*17 --max-workers 16", 2, "the arena has 16 slots; raise max_workers"),
        ("--workers torch:cpu*4097", 2, "an arena has at most 4096 slots"),
        ("--workers 0", 2, "wanted at least 1"),
        ("--out good.txt", 2, "good.txt is a file"),
        ("--name a/b", 2, "use letters, digits"),
        ("--gpu-write metal", 2, "gpu_write=metal needs a GPU worker"),
        ("--gpu-write metal-emulated --write lossless", 2, "every CPU writer has to use cas"),
        ("--gpu-write metal-emulate", 2, "did you mean 'metal-emulated'?"),
        ("--force maybe", 2, "--force is 'maybe'; wanted true or false"),
    ],
)
def test_train_refuses_with_one_message_and_leaves_nothing(here, words, code, message, capsys):
    if "mlx:gpu" in words and machine.here().apple_gpu:
        pytest.skip("this machine has what the case lacks: an Apple GPU")
    common = ["train", "--model=small.yaml", "--data=good.txt", *SMALL]
    assert main(changed(common, *words.split())) == code
    out, err = capsys.readouterr()
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_framework_that_is_not_installed_is_named_with_the_command_that_installs_it(
    here, monkeypatch, capsys
):
    def only(framework):
        one = machine.here().__class__("linux", "x86_64", 2, 8 << 30, "", frozenset({framework}))
        monkeypatch.setattr(machine, "here", lambda: one)

    words = ["train", "--model", "small.yaml", "--data", "good.txt", *SMALL]
    only("torch")
    assert main(changed(words, "--workers", "mlx:cpu")) == 3
    assert "python -m pip install 'mlx[cpu]'" in capsys.readouterr().err
    only("mlx")
    assert main(changed(words, "--workers", "torch:cpu")) == 3
    assert "python -m pip install torch" in capsys.readouterr().err
    words.remove("--quiet")
    assert (
        main(changed(words, "--workers", "2", "--json")) == 0
    )  # auto continues with the other one
    out, err = capsys.readouterr()
    assert [worker["backend"] for worker in json.loads(out)["workers"]] == ["mlx:cpu"] * 2
    assert "python -m pip install torch" in err


@each_of(
    ("words", "code", "message"),
    [
        ("latest", 2, "there is no run in runs yet; start one with: mlxhog train"),
        ("nowhere", 2, "no run 'nowhere'"),
        ("folder", 2, "folder is neither a checkpoint nor a run"),
        ("~nosuchuser/x", 2, "the system does not know a user 'nosuchuser'"),
        ("~nosuchuser/best", 2, "the system does not know a user 'nosuchuser'"),
        ("good.txt", 2, "good.txt is not a run"),
    ],
)
def test_generate_refuses_what_is_no_model(here, words, code, message, capsys, monkeypatch):
    monkeypatch.setattr(opening, "FIRST_RUN_S", 0.1)
    assert main(["generate", words]) == code
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


@each_of("number", [errno.EACCES, errno.EPERM])
def test_a_path_that_the_system_refuses_is_named(here, number, monkeypatch, capsys):
    is_dir = Path.is_dir

    def refused(path):
        if path.name == "closed":  # as for a user who is not root
            raise PermissionError(number, os.strerror(number), path)
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refused)
    for option in ("--data", "--tokenizer"):
        common = ["train", "--model=small.yaml", "--data=good.txt", *SMALL]
        assert main(changed(common, option, "others/closed")) == 2
        out, err = capsys.readouterr()
        assert err.startswith("no permission for 'others/closed'")
        assert len(err.splitlines()) == 1
        assert out == ""


def test_a_prompt_that_is_not_utf8_is_refused(here, capsys):
    assert main(["generate", "latest", "--prompt", "a\udcff"]) == 2
    assert "not UTF-8 text" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_says_how_to_begin_again(here, capsys):
    new_run = creation.create(Path("runs"), "early")
    assert main(["generate", new_run.name]) == 2
    assert f"mlxhog train --config {new_run.config_path}" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_output_that_cannot_be_written_is_one_message():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "mlxhog", "mad", "show", "swiglu"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert process.returncode == 3
    assert process.stderr == "the output cannot be written: No space left on device\n"
