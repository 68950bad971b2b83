"""`mlxhog options` and `mlxhog models` list all options and architectures, and print each."""

import pytest

from mlxhog.cli import names
from mlxhog.config import sources
from mlxhog.config.components import RUN_REGISTRIES
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.models.registry import architectures, load_architecture
from tests.cli.command import said, told


def test_the_list_has_every_option_and_number_of_train_and_options_of_all_commands(capsys):
    rows = told(capsys, "options")
    of_train = {row["name"]: row for row in rows if "train" in row["commands"]}
    for name, spec in options(TrainConfig).items():
        if name != "plugin":  # a flag of many commands
            row = of_train[name]
            assert (row["default"], row["help"]) == (spec.default_text, spec.help)
    numbers = {(row["kind"], row["name"], one) for row in rows for one in row["of"]}
    for kind in RUN_REGISTRIES:
        for name, number in kind.hyperparameters().items():
            assert {(kind.title, name, owner.name) for owner in number.owners} <= numbers
    assert {command for row in rows for command in row["commands"]} == {*names()}
    assert len(said(capsys, "options").out.splitlines()) == len(rows)
    assert {row["name"] for row in told(capsys, "options", "wsd")} == {"min_lr_ratio", "warmup"}
    assert all(
        "mad consensus" in row["commands"] for row in told(capsys, "options", "mad", "consensus")
    )


def test_an_option_is_shown_with_what_it_belongs_to_and_a_choice_with_what_it_is(capsys):
    first, second = said(capsys, "options", "slack").out.split("\n\n")
    assert first.startswith("slack: steps that a worker may be ahead of the slowest")
    for text in ("strategy ssp", "3", "a whole number at least 0 (steps)", "train, mad train"):
        assert any(line.endswith(f" {text}") for line in first.splitlines())
    assert '--slack, --strategy "ssp(slack=...)"' in first
    assert second.endswith("simulate\n")  # its own option of this name
    assert said(capsys, "options", "ssp").out.startswith("strategy ssp: a parameter server")


def test_no_name_of_ours_is_taken_for_one_of_another_tool():
    spec = options(TrainConfig)
    own = {*spec, *(alias for each in spec.values() for alias in each.aliases)}
    assert not own & {name for name, ours in sources._OURS.items() if " " not in ours[0]}


def test_the_list_has_every_architecture_and_fits_a_terminal(capsys):
    lines = said(capsys, "models").out.splitlines()
    named = {line.split()[0] for line in lines[1 : len(architectures()) + 1]}
    assert named == set(architectures())
    assert max(map(len, lines)) <= 80
    (row,) = [one for one in told(capsys, "models") if one["name"] == "tiny"]
    assert row == {
        "name": "tiny", "family": "xlstm", "parameters": 939_680, "hidden_size": 128, "blocks": 4,
        "vocab_size": 320,
    }  # fmt: skip


@pytest.mark.parametrize("words", [["10m"], ["7to1-tiny", "--set", "hidden_size=64"]])
def test_what_it_prints_is_the_model(words, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(said(capsys, "models", *words).out)
    cfg = load_architecture(words[0], words[2] if len(words) > 1 else None)
    assert load_architecture(tmp_path / "my.yaml") == cfg
