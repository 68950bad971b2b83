"""A layer is one file: `--plugin` trains and checks it without touching the package."""

import json
import re
import shlex
from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.config import plugins
from mlxhog.errors import ConfigError
from mlxhog.mad import suites
from mlxhog.models.mad.layers import make
from mlxhog.models.mad.sequence import parse
from tests.own_plugins import own_plugins
from tests.training.small import small_config

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_layer.py"
LINE = "my_layer swiglu"
LAYER = "from mlxhog.models.mad.layer import Layer\nclass A(Layer):\n"


def told(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])  # MLX's backend says its BLAS


def other(folder, name, *changes):
    """The example under another name, with some of its text replaced."""
    text = EXAMPLE.read_text().replace('"my_layer"', f'"{name}"')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / f"{name}.py"
    file.write_text(text)
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_parity_checks_a_layer_from_a_file(capsys):
    small = ("--seq-len", "9", "--batch-size", "1", "--steps", "1")
    result = told(capsys, "parity", LINE, "--plugin", str(EXAMPLE), *small)
    assert result["ok"]
    sides = {row["b"] for row in result["rows"]}
    assert {"numpy", "torch:cpu"} <= sides
    assert any(row["what"].startswith("grad/layers.0.z_proj") for row in result["rows"])


@pytest.fixture(scope="module")
def undeclared(tmp_path_factory):
    """A layer that reads an undeclared parameter."""
    change = ('ones_like(p["z_proj.bias"]', 'ones_like(p["z_proj.bia"]')
    return other(tmp_path_factory.mktemp("layers"), "undeclared", change)


@pytest.mark.parametrize(
    "command",
    [
        'mad train --layers "undeclared swiglu" --backend torch --task CR --dim 16 --steps 2',
        'mad train --layers "undeclared swiglu" --backend mlx --task CR --dim 16 --steps 2',
        'mad train --layers "undeclared swiglu" --workers mlx:cpu*2 --task CR --dim 16 --steps 2',
        "train --model model.yaml --data text --workers mlx:cpu --steps 2",
        'parity "undeclared swiglu" --seq-len 9 --steps 0',
    ],
)
def test_a_parameter_that_a_layer_reads_and_does_not_declare_is_refused_in_words(
    command, undeclared, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)  # writes a text
    Path("model.yaml").write_text("model: {dim: 16, layers: [undeclared, swiglu]}")
    assert main([*shlex.split(command), "--plugin", str(undeclared)]) == 2
    assert re.search(
        r"layer undeclared reads the parameter 'z_proj\.bia', which its param_spec does not "
        r"declare \(it declares v_proj\.weight, .*, out_proj\.weight\); declare it there, or "
        r"read another one; did you mean 'z_proj\.bias'\?\n$",
        capsys.readouterr().err,
    )


def test_a_run_with_another_text_of_the_layer_is_another_run(tmp_path):
    file = other(tmp_path, "keyed")

    def keys():
        with own_plugins(forgets=True):
            plugins.load(file)
            runs = (
                next(suites.expand(suites.suite("smoke"), parse(line), [1]))
                for line in ("keyed swiglu", "swiglu")
            )
            return [run.key() for run in runs]

    keyed, swiglu = keys()
    assert keys() == [keyed, swiglu]
    file.write_text(file.read_text() + "\n# another text\n")
    other_keyed, other_swiglu = keys()
    assert keyed != other_keyed
    assert swiglu == other_swiglu


def test_an_unknown_layer_is_answered_with_the_flag(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no layer 'mine'; .*need the file .*--plugin FILE"):
        make("mine")
    config = tmp_path / "config.json"
    layers = [{"type": "mine", "expand": 2}, "swiglu"]
    config.write_text(
        json.dumps({"model_type": "mad", "vocab_size": 8, "hidden_size": 16, "layers": layers})
    )
    assert main(["mad", "show", str(config)]) == 2
    assert "--plugin FILE" in capsys.readouterr().err
    file = other(tmp_path, "mine")
    result = told(capsys, "mad", "show", str(config), "--plugin", str(file))
    assert result["layers"] == "mine(expand=2) swiglu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read it: .*; give a Python file"),
        ("def f(:", "line 1: SyntaxError"),
        ("import no_such_module", "line 1: ModuleNotFoundError: "),
        ("x = 1", "adds nothing that can be chosen. It may add: layer: .*; strategy: "),
        ("{}class A:\n    name, kind = 'bad b', 'mixer'", "its name is 'bad b'; use a letter"),
        ("{}class A:\n    name, kind = 'bad-d', 'mixer'", "it is not a Layer of"),
        (f"{LAYER}    name, kind = 'bad-c', 'norm'", "its kind is 'norm'; it is 'mixer' or"),
        (f"{LAYER}    name = 'bad-e'", "class A: it has no param_spec, forward; see examples/my_"),
    ],
)
def test_a_file_without_a_layer_is_refused_in_words(tmp_path, text, message):
    file = tmp_path / "layer.py"
    if text is not None:
        head = "from dataclasses import dataclass\n@dataclass(frozen=True)\n"
        file.write_text(text.replace("{}", head))
    with pytest.raises(ConfigError, match=message):
        plugins.load(file)


def test_a_name_of_the_package_is_taken(tmp_path):
    with pytest.raises(ConfigError, match="there is a layer 'mlstm' already"):
        plugins.load(other(tmp_path, "mlstm"))


def test_numbers_of_a_layer_have_a_type_that_a_line_can_write(tmp_path):
    file = other(tmp_path, "listed", ("expand: int = 1", "expand: tuple[int, ...] = (1,)"))
    with pytest.raises(ConfigError, match="expand needs a default and one of the types int, float"):
        plugins.load(file)
