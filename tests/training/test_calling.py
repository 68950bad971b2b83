"""`mlxhog.train` from Python: keywords, a file or a configuration, and what is shown meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mlxhog
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.report.plain import PlainLines
from tests.training.small import small_config

Asked = list[tuple[TrainConfig, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What would be trained, and by what it would be shown."""
    result: Asked = []
    monkeypatch.setattr(
        "mlxhog.training.trainer.train", lambda config, observer: result.append((config, observer))
    )
    return result


def test_keywords_are_the_options_by_their_names(asked: Asked, tmp_path: Path) -> None:
    mlxhog.train(data=tmp_path / "notes", time="90s", workers=2, size="10m", eval_every=50)
    mlxhog.train()
    mlxhog.train(set={"hidden_size": 64, "num_hidden_layers": 1})
    data = str(tmp_path / "notes")
    assert [config for config, _ in asked] == [
        TrainConfig(data=data, time=90.0, workers="2", model="10m", eval_every=50),
        TrainConfig(),
        TrainConfig(set="hidden_size=64, num_hidden_layers=1"),
    ]


def test_keywords_win_over_a_file(asked: Asked, tmp_path: Path) -> None:
    file = tmp_path / "conf.yaml"
    file.write_text("seq_len: 64\nlr: 1e-3\n")
    mlxhog.train(str(file), lr=2e-3)
    mlxhog.train(config=file)
    assert [config for config, _ in asked] == [
        TrainConfig(seq_len=64, lr=2e-3),
        TrainConfig(seq_len=64, lr=1e-3),
    ]


def test_lines_are_shown_where_there_is_no_terminal_and_nothing_for_none(asked: Asked) -> None:
    config = TrainConfig(steps=1)
    mlxhog.train(config)
    mlxhog.train(config, observer=None)
    mlxhog.train(config, observer=print)
    assert [each for each, _ in asked] == [config] * 3
    lines, nothing, own = (observer for _, observer in asked)
    assert isinstance(lines, PlainLines)
    assert (nothing, own) == (None, print)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mlxhog.train(wrokers=2),
            r"train\(\): no option 'wrokers'; did you mean 'workers'",
        ),
        (lambda: mlxhog.train(lr="fast", stepps=2), "(?s)no option 'stepps'.*lr is 'fast'; wanted"),
        (lambda: mlxhog.train(data=["a", "b"]), r"data is \['a', 'b'\]; wanted text"),
        (lambda: mlxhog.train("notes/"), r"train\(data='notes/'\)"),
        (lambda: mlxhog.train({"lr": 1}), "a dict, expected a TrainConfig"),
        (lambda: mlxhog.train("none.yaml"), "none.yaml: cannot read the configuration"),
        (lambda: mlxhog.train(TrainConfig(), lr=1), "lr stands beside a TrainConfig"),
        (lambda: mlxhog.train(observer="quiet"), "observer is 'quiet', expected 'auto', None"),
    ],
)
def test_bad_input_names_what_is_wrong_and_the_way_out(
    asked: Asked, call: Any, message: str
) -> None:
    with pytest.raises(mlxhog.ConfigError, match=message):
        call()
    assert not asked


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path, steps=4)
    values = {name: getattr(config, name) for name in options(TrainConfig)}
    result = mlxhog.train(**values)
    assert (result.status, result.steps) == ("done", 4)
    assert isinstance(result, mlxhog.Result)
    output = capsys.readouterr()
    assert "1 worker: mlx:cpu" in output.err
    assert output.out == ""
    reports: list[mlxhog.Progress] = []
    again = mlxhog.train(resume="latest", steps=3, out=config.out, observer=reports.append)
    assert (again.run, again.steps, again.tokens) == (result.run, 7, 7 * 2 * 32)
    assert isinstance(reports[-1], mlxhog.Progress)
    assert capsys.readouterr().err == ""
