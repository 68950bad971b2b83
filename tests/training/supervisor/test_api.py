"""`mlxhog.train` from Python: keywords, a file or a configuration, and the shown progress."""

import io
from pathlib import Path
from unittest.mock import Mock

import pytest

import mlxhog
from mlxhog.base.output import say_once
from mlxhog.checkpoint import new_run, run
from mlxhog.config.components import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import of_keywords
from mlxhog.display.plain import PlainLines, RunView
from mlxhog.errors import DataError
from mlxhog.optim import AdamW, Muon, open_hyperparameters
from mlxhog.strategies import Hogwild, Sync
from mlxhog.training.supervisor import training
from mlxhog.training.supervisor.api import configured
from tests.pairs import each_of

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The configuration that would be trained, and its observer."""
    result = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mlxhog.training.supervisor.training.train",
        lambda config, observer, run: result.append((config, observer)),
    )
    return result


def test_keywords_are_the_options_by_their_names_and_win_over_a_file(asked, tmp_path):
    file, data = tmp_path / "conf.yaml", tmp_path / "notes"
    file.write_text("seq_len: 64\nlr: 1e-3\n")
    mlxhog.train(data=data, time="90s", workers=2, size="10m", eval_every=50)
    mlxhog.train(set={"hidden_size": 64, "num_hidden_layers": 1})
    mlxhog.train(str(file), lr=2e-3)
    mlxhog.train(config=file)
    assert [config for config, _ in asked] == [
        TrainConfig(data=str(data), time=90.0, workers="2", model="10m", eval_every=50),
        TrainConfig(set="hidden_size=64, num_hidden_layers=1"),
        TrainConfig(seq_len=64, lr=2e-3),
        TrainConfig(seq_len=64, lr=1e-3),
    ]


def test_a_list_of_own_files_is_loaded_and_a_file_may_lie_below_the_home(
    asked, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    files = [EXAMPLES / "my_optimizer.py", str(EXAMPLES / "my_strategy.py")]
    mlxhog.train(plugin=files, optimizer="my_optimizer", strategy="my_strategy")
    (tmp_path / "conf.yaml").write_text("seq_len: 64\n")
    mlxhog.train("~/conf.yaml", runs_dir="~/mine")
    (own, _), (at_home, _) = asked
    assert own.plugin == ",".join(map(str, files))
    assert (own.optimizer.name, own.strategy.name) == ("my_optimizer", "my_strategy")
    assert (at_home.seq_len, at_home.runs_dir) == (64, str(tmp_path / "mine"))
    assert (tmp_path / "mine").is_dir()


@each_of(
    ("observer", "is_shown"),
    [(None, False), (print, False), (RunView(), False), (PlainLines(io.StringIO()), True)],
)
def test_a_function_is_called_instead_of_a_status_line(monkeypatch, tmp_path, observer, is_shown):
    planned = Mock(side_effect=DataError("enough"))
    monkeypatch.setattr(training, "make_plan", planned)
    with pytest.raises(DataError, match="enough"):
        training.train(TrainConfig(runs_dir=tmp_path), observer=observer)
    assert planned.call_args.kwargs == {"progress": is_shown}


def test_lines_are_shown_where_there_is_no_terminal_and_nothing_for_none(asked):
    config = TrainConfig(steps=1)
    mlxhog.train(config)
    mlxhog.train(config, observer=None)
    mlxhog.train(config, observer=print)
    assert [each for each, _ in asked] == [config] * 3
    lines, nothing, own = (observer for _, observer in asked)
    assert isinstance(lines, PlainLines)
    assert (nothing, own) == (None, print)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (None, {"wrokers": 2}, r"train\(\): no option 'wrokers'; did you mean 'workers'"),
        (None, {"lr": "fast", "stepps": 2}, "(?s)no option 'stepps'.*lr is 'fast'; wanted"),
        ("notes/", {}, r"train\(data='notes/'\)"),
        ({"lr": 1}, {}, "a dict, expected a TrainConfig"),
        ("none.yaml", {}, "none.yaml: cannot read the configuration"),
        (TrainConfig(), {"lr": 1}, "lr stands beside a TrainConfig"),
        (TrainConfig(resume="a", steps=2), {}, r"would not count; .*: train\(resume='a', steps="),
        (None, {"observer": "quiet"}, "observer is 'quiet', expected 'auto', None"),
    ],
)
def test_bad_input_names_the_error_and_the_way_out(asked, config, values, message):
    with pytest.raises(mlxhog.ConfigError, match=message):
        mlxhog.train(config, **values)
    assert not asked


DEFAULT = object()
SYNC = {
    "strategy": "sync", "sync_shares": "speed", "lr": 0.00424, "beta1": 0.75, "workers": "2"
}  # fmt: skip
AUTOMATIC = (("lr", "beta1"), SYNC)
GIVEN, OPEN = {"lr": 0.00424, "beta1": 0.75}, {"lr": None, "beta1": None}


@pytest.mark.parametrize(
    ("old", "changes", "expected"),
    [
        # A number of another choice is left out.
        ({"strategy": "diloco", "outer_lr": 0.5}, {"strategy": "sync"}, {"outer_lr": DEFAULT}),
        ({"val_subset_tokens": 512}, {"eval_every": 0}, {"val_subset_tokens": DEFAULT}),
        ({"init_from": "x", "adapter": "lora", "base_weights": "4bit"}, {"adapter": "none"},
         {"base_weights": DEFAULT}),
        # An optimizer keeps its numbers, as every choice does.
        ({"optimizer": "adamw", "beta2": 0.9, "eps": 0.1}, {"optimizer": "auto"},
         {"optimizer": AdamW(beta2=0.9, eps=0.1)}),
        # Automatic options are decided again if the run changes.
        (AUTOMATIC, {}, {"strategy": Sync(shares="speed"), **GIVEN}),
        (AUTOMATIC, {"strategy": "sync", "workers": 2, "schedule": "wsd"}, GIVEN),
        (AUTOMATIC, {"strategy": "hogwild", "max_workers": 4}, {"strategy": Hogwild(), **OPEN}),
        (AUTOMATIC, {"workers": 4}, OPEN),
        (AUTOMATIC, {"strategy": "hogwild", "lr": 0.1}, {"lr": 0.1, "beta1": None}),
        # A learning rate that was given stays, but with another optimizer.
        ((("beta1",), SYNC), {"strategy": "hogwild", "workers": 4},
         {"lr": 0.00424, "optimizer": Muon()}),
        (SYNC, {"strategy": "hogwild"}, {"lr": 0.00424, "optimizer": Muon(beta1=0.75)}),
    ],
)  # fmt: skip
def test_a_run_resumes_with_its_options_as_far_as_the_call_does_not_change_them(
    tmp_path, monkeypatch, old, changes, expected
):
    monkeypatch.chdir(tmp_path)
    automatic, own = old if isinstance(old, tuple) else ((), old)
    stored = new_run.create(Path("runs"), "old")
    stored.config_path.write_text(TrainConfig(steps=100, **own).to_yaml())
    stored.write_status({"automatic": automatic})
    config, same = (
        configured([of_keywords("train()", {"resume": stored.name, **options})])
        for options in (changes, {})
    )
    for option, value in expected.items():
        if value is DEFAULT:
            value = value_of(TrainConfig(), option)
            assert value_of(same, option) == own[option]
        assert value_of(config, option) == value, option


def test_auto_keeps_the_strategy_of_a_resumed_run_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    say_once.cache_clear()
    message = "strategy auto: the resumed run keeps hogwild; name another to change\n"
    for own, asked, said in (
        ("hogwild", {}, ""), ("auto", {"strategy": "auto"}, ""),
        ("hogwild", {"strategy": "auto"}, message),
    ):  # fmt: skip
        stored = new_run.create(Path("runs"), "old")
        stored.config_path.write_text(TrainConfig(steps=100, strategy=own).to_yaml())
        configured([of_keywords("train()", {"resume": stored.name, **asked})])
        assert capsys.readouterr().err == said


def test_a_resumed_run_is_named_by_its_path_once_its_options_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = new_run.create(Path("runs"), "old")
    for spec, name in (
        ("latest", stored.directory),
        (f"{stored.name}/best", stored.directory / "best"),
        (f"runs/{stored.name}", stored.directory),
    ):
        config = configured([{"resume": (spec, "--resume")}])
        assert config.resume == str(name)


def value_of(config, name):
    """An option of a run, or a number of its strategy or optimizer; its default without such."""
    if name in ("lr", "beta1"):
        return open_hyperparameters(config)[name]
    if name not in STRATEGIES.hyperparameters():
        return getattr(config, name)
    return getattr(config.strategy, name, STRATEGIES.hyperparameters()[name].default)


def test_a_new_run_is_the_latest_before_anything_is_prepared_and_goes_where_that_fails(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    earlier = new_run.create(Path("runs"), "old")

    def refuse(config, **_):
        latest = run.find("latest", Path("runs"))
        assert latest.is_starting()
        raise DataError(f"no text for {latest.name}")

    monkeypatch.setattr("mlxhog.training.supervisor.training.make_plan", refuse)
    with pytest.raises(DataError, match="-new$"):
        mlxhog.train(name="new", observer=None)
    assert [path.name for path in Path("runs").iterdir()] == [earlier.name]
