"""Files with the user's layers remember the layers' file, which runs only if the user named it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlxhog.base import cache
from tests.own_plugins import mlxhog
from tests.training.small import small_config

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_layer.py"


@pytest.fixture
def winner(tmp_path):
    """An architecture file with a layer from my_layer.py beside it."""
    (tmp_path / "my_layer.py").write_text(EXAMPLE.read_text())
    words = ("my_layer swiglu", "--depth", "2", "--dim", "16", "--out", "w.yaml")
    ended = mlxhog(tmp_path, "mad", "scale", *words, "--plugin", "my_layer.py")
    assert ended.code == 0, ended.err
    return tmp_path / "w.yaml"


def shown(winner, *words):
    return mlxhog(winner.parent, "mad", "show", winner.name, "--json", *words)


def test_a_written_architecture_names_path_and_digest_of_its_file(winner):
    file = winner.parent / "my_layer.py"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert yaml.safe_load(winner.read_text())["plugin"] == [f"{file} sha256:{digest}"]


def test_a_later_command_loads_the_remembered_file_and_says_so(winner):
    ended = shown(winner)
    assert json.loads(ended.out)["layers"] == "my_layer swiglu"
    assert ended.err == f"plugin {winner.parent}/my_layer.py\n"


def test_a_file_that_changed_is_refused_with_the_flag_that_takes_it_as_it_is(winner):
    file = winner.parent / "my_layer.py"
    file.write_text(file.read_text() + "# edited\n")
    refused = shown(winner)
    assert refused.code == 2
    assert f"{file} has changed since it was remembered" in refused.err
    assert f"--plugin {file}" in refused.err
    taken = shown(winner, "--plugin", str(file))
    assert taken.code == 0
    assert "is not the version that was remembered" in taken.err


def test_a_file_that_is_gone_is_asked_for_and_its_copy_is_the_same(winner):
    file = winner.parent / "my_layer.py"
    file.rename(winner.parent / "moved.py")
    refused = shown(winner)
    assert refused.code == 2
    assert f"{file} is gone; give its new place: --plugin FILE" in refused.err
    taken = shown(winner, "--plugin", "moved.py")
    assert (taken.code, taken.err) == (0, "")


EVIL = EXAMPLE.read_text() + "\nfrom pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize("form", ["w.yaml", "config.json"])
def test_what_comes_from_elsewhere_runs_no_code_by_naming_a_file(tmp_path, form):
    file = tmp_path / "evil.py"
    file.write_text(EVIL)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    layers = {"layers": ["my_layer", "swiglu"], "vocab_size": 8}
    files = {"plugin": [f"{file} sha256:{digest}"]}
    architecture = {"version": 1, "model": layers, **files}
    if form == "config.json":
        architecture = {"model_type": "mad", "hidden_size": 16, **layers, **files}
    (tmp_path / form).write_text(json.dumps(architecture))
    refused = shown(tmp_path / form)
    assert refused.code == 2
    assert "you have never named that file" in refused.err
    assert not (tmp_path / "ran").exists()
    assert shown(tmp_path / form, "--plugin", "evil.py").code == 0
    assert (tmp_path / "ran").exists()


def test_a_configuration_file_runs_a_file_only_as_it_was_named_before(tmp_path):
    file = tmp_path / "my_layer.py"
    file.write_text(EVIL)
    (tmp_path / "arch.yaml").write_text("model: {dim: 16, layers: [my_layer, swiglu]}")
    small_config(tmp_path)  # writes a text
    (tmp_path / "conf.yaml").write_text("model: arch.yaml\ndata: text\nplugin: my_layer.py\n")
    words = ("train", "--config", "conf.yaml", "--dry-run", "--workers", "mlx:cpu")
    refused = mlxhog(tmp_path, *words)
    assert refused.code == 2
    assert "you have never named that file" in refused.err
    assert not (tmp_path / "ran").exists()
    assert shown(tmp_path / "arch.yaml", "--plugin", "my_layer.py").code == 0
    assert mlxhog(tmp_path, *words).code == 0
    file.write_text(EVIL + "# edited\n")
    refused = mlxhog(tmp_path, *words)
    assert refused.code == 2
    assert "you have never named that file, as it is now" in refused.err


def test_a_note_that_others_can_write_is_not_believed(winner):
    (note,) = (cache.user_cache_directory() / "named-files").iterdir()
    note.chmod(0o666)
    refused = shown(winner)
    assert refused.code == 3
    assert "not trusted: it can be written by others" in refused.err


STUDY = (
    *("--tasks", "in-context-recall", "--steps", "2", "--study", "s", "--parallel", "1"),
    *("--backend", "mlx"),
)
SMALL = (
    *("--workers", "mlx:cpu*2", "--seq-len", "32", "--batch-size", "1", "--eval-tokens", "512"),
    *("--data", "text"),
)


@pytest.mark.slow
def test_a_study_and_a_run_remember_the_file_for_every_later_command(tmp_path):
    """Also in a folder whose name has a comma, which divides the files that are named."""
    folder = tmp_path / "a, b"
    folder.mkdir()
    file = folder / "my_layer.py"
    file.write_text(EXAMPLE.read_text())
    small_config(folder)  # writes a text
    space = "space: {depth: 2, mixers: [my_layer], channels: [swiglu], dim: 16}"
    (folder / "space.yaml").write_text(space)
    search = ("mad", "search", "--space", "space.yaml", *STUDY)
    goes_on = ("train", "--resume", "latest", "--steps", "2", "--quiet")
    for words in (
        (*search, "--plugin", "my_layer.py"),
        ("mad", "vote", "s", "--out", "w.yaml"),
        (*search, "--plugin", "my_layer.py"),
        ("train", "--model", "w.yaml", *SMALL, "--steps", "2", "--quiet"),
        goes_on,
        ("eval", "latest", "--data", "space.yaml", "--backend", "mlx:cpu"),
        ("convert", "latest", "copy", "--to", "mlxhog", "--check"),
    ):
        ended = mlxhog(folder, *words)
        assert ended.code == 0, (words, ended.err)
    file.write_text(file.read_text() + "# edited\n")
    refused = mlxhog(folder, "mad", "resume", "s", "--plugin", "my_layer.py")
    assert refused.code == 2
    assert f"were made with another version of {file}" in refused.err
    assert mlxhog(folder, "mad", "board", "s", "--plugin", "my_layer.py").code == 0
    assert mlxhog(folder, *goes_on).code == 2
    taken = mlxhog(folder, *goes_on, "--plugin", "my_layer.py")
    assert taken.code == 0
    assert "is not the version that was remembered" in taken.err


PROGRAM = """
import sys
import mlxhog
options = dict(
    data="text", workers="mlx:cpu", seq_len=32, batch_size=1, eval_tokens=512, steps=2
)
run = mlxhog.train(model="arch.yaml", plugin="my_layer.py", observer=None, **options).run
print(mlxhog.load(run, backend="mlx:cpu").config.layers[0].name)
"""


@pytest.mark.slow
def test_python_takes_the_file_as_an_argument(tmp_path):
    small_config(tmp_path)  # writes a text
    (tmp_path / "my_layer.py").write_text(EXAMPLE.read_text())
    (tmp_path / "arch.yaml").write_text("model: {dim: 16, layers: [my_layer, swiglu]}")
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.stdout.strip() == "my_layer", process.stderr
    process = subprocess.run(
        [sys.executable, "-c", "import mlxhog; "
         "mlxhog.load('latest', backend='mlx:cpu', plugin='my_layer.py')"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
